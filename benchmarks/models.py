"""Many models in one server, with room for a few: is each picture its model's own, is anything compiled for another
model, does anybody wait too long, does memory grow? And does a swap take longer than a copy of its bytes?

    python benchmarks/models.py alike    # copies of `tiny` with other weights, each compared with the model alone
    python benchmarks/models.py swap     # the bytes of SDXL's U-Net, from host memory onto the devices

`alike` has clients that each ask again once they are answered, for a model at random, so all have the same share of the
server. The fair share of waiting is then the mean; `longest` is the longest wait in such shares.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import psutil
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxl.backend import open_backend
from jaxl.bench.measure import compilations
from jaxl.engine import Engine
from jaxl.presets import SDXL_BASE
from jaxl.residency import parts
from jaxl.residency.models import Models, open_models
from jaxl.run.model import Model
from jaxl.run.sharding import make_mesh, place_parameters
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.weights.layout import aligned, flatten, placed, unflatten
from jaxl.weights.source import EMBEDDED

PATH = "/v1/images/generations"
SIZES = ((64, 64),)
PROMPTS = ("a red apple on a blue background, flat style", "a cat", "a blue star")

Body = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="trial", required=True)
    own = kinds.add_parser("alike")
    own.set_defaults(run=alike)
    for name, default in (("models", 20), ("room", 3), ("host-room", 3), ("requests", 500), ("clients", 16)):
        own.add_argument(f"--{name}", type=int, default=default)
    own.add_argument("--seed", type=int, default=0)
    own = kinds.add_parser("swap")
    own.set_defaults(run=swap)
    own.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(args.run(args)))


def alike(args: Any) -> dict[str, Any]:
    """Return what became of requests for models at random, most of which are not on the devices."""
    random = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        names = [write_copy(Path(folder), number) for number in range(args.models)]
        sources = [(name, str(Path(folder) / name)) for name in names]
        options: dict[str, Any] = {"sizes": SIZES, "slots": 2, "chunks": 1}
        models = open_models(sources, **options)
        models.device_memory, models.host_memory = room(models, args.room), room(models, args.host_room)
        bodies = [body(names[random.integers(args.models)], int(random.integers(4))) for _ in range(args.requests)]
        before = sum(each.swap_seconds for each in models.models())
        with compilations() as compiled, Engine(models, max_waiting=args.clients) as engine:
            settings = Settings(**{**models.defaults, "deadline": 3600.0})
            began = time.monotonic()
            pictures, waits, memory = asyncio.run(drawn(create_app(Service(engine, settings)), bodies, args.clients))
            seconds = time.monotonic() - began
        swaps = {place: sum(each.swaps.get(place, 0) for each in models.models()) for place in ("disk", "host")}
        swap_seconds = sum(each.swap_seconds for each in models.models()) - before
        wrong = 0
        for name, source in sources:
            of_model = [i for i, each in enumerate(bodies) if each["model"] == name]
            with Engine(open_backend(source, **options)) as engine:
                own: dict[str, Any] = {**models.defaults, "model": name}
                app = create_app(Service(engine, Settings(**own)))
                alone = asyncio.run(drawn(app, [bodies[i] for i in of_model], 1))[0]
            wrong += sum(pictures[i] != picture for i, picture in zip(of_model, alone, strict=True))
    return {
        "requests": len(bodies),
        "different": len(set(pictures)),
        "wrong": wrong,
        "compiled": len(compiled),
        "swaps": swaps,
        "share_of_time_in_swaps": round(swap_seconds / seconds, 2),
        "mean_wait": round(float(np.mean(waits)), 2),
        "longest": round(float(np.max(waits) / np.mean(waits)), 2),
        "mib": [round(each) for each in memory[:: max(len(memory) // 10, 1)]],
        "seconds": round(seconds),
    }


async def drawn(app: Any, bodies: Sequence[Body], clients: int) -> tuple[list[bytes], list[float], list[float]]:
    """Return the pixels of requests, how long each waited, and the memory in MiB after each answer."""
    pictures, waits, memory = [b""] * len(bodies), [0.0] * len(bodies), []
    left = iter(enumerate(bodies))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://trial", timeout=None) as http:

        async def client() -> None:
            for number, each in left:
                began = time.monotonic()
                answer = (await http.post(PATH, json=each)).raise_for_status()
                waits[number] = time.monotonic() - began
                data = base64.b64decode(answer.json()["data"][0]["b64_json"])
                pictures[number] = Image.open(io.BytesIO(data)).tobytes()
                memory.append(psutil.Process().memory_info().rss / 2**20)

        await asyncio.gather(*(client() for _ in range(clients)))
    return pictures, waits, memory


def body(model: str, seed: int) -> Body:
    return {"model": model, "prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "num_inference_steps": 2 + seed % 3}


def room(models: Models, count: int) -> int:
    """Return the bytes of so many models that share all but the U-Net."""
    whole, unet = sum(models.first.parts.values()), models.first.parts[models.first.digests["unet"]]
    return whole + (count - 1) * unet


def write_copy(folder: Path, number: int) -> str:
    """Write a copy of `tiny` whose U-Net has other weights, and return its name."""
    name = f"tiny{number}"
    shutil.copytree(EMBEDDED["tiny"], folder / name, ignore=shutil.ignore_patterns("loras", "controlnets"))
    (file,) = (folder / name / "unet").glob("*.safetensors")
    random = np.random.default_rng(number)
    save_file({key: array * array.dtype.type(random.normal(1, 0.02)) for key, array in load_file(file).items()}, file)
    return name


def swap(args: Any) -> dict[str, Any]:
    """Return how long the bytes of SDXL's U-Net take from host memory onto the devices, and how long a copy takes.

    On a CPU the devices read host memory itself, so that a swap copies nothing; the copy is one within the memory.
    """
    mesh = make_mesh()
    shapes = place_parameters(Model.from_configs(SDXL_BASE).shapes(jnp.bfloat16), mesh, split=False)["unet"]
    random = np.random.default_rng(0)

    def leaf(shape: Any) -> jax.Array:
        numbers = np.frombuffer(random.bytes(2 * int(np.prod(shape.shape))), shape.dtype).reshape(shape.shape)
        return placed(aligned(numbers), shape.sharding)

    device = unflatten({key: leaf(shape) for key, shape in flatten(shapes).items()})
    host, swaps, copies = parts.on_host(device), [], []
    del device
    on_cpu = jax.devices()[0].platform == "cpu"
    for _ in range(args.times):
        began = time.perf_counter()
        jax.block_until_ready(parts.on_devices(host, shapes))
        swaps.append(time.perf_counter() - began)
        began = time.perf_counter()
        for array in flatten(host).values():
            np.array(array) if on_cpu else jax.device_put(array, jax.devices()[0]).block_until_ready()
        copies.append(time.perf_counter() - began)
    gigabytes = parts.nbytes(shapes) / 1e9
    return {
        "gigabytes": round(gigabytes, 2),
        "swap_seconds": round(float(np.median(swaps)), 4),
        "copy_seconds": round(float(np.median(copies)), 4),
        "ratio": round(float(np.median(np.array(swaps) / np.array(copies))), 4),
    }


if __name__ == "__main__":
    main()
