"""LoRAs in a server under load: whether pictures depend on their neighbours, and whether memory grows.

    python benchmarks/lora_server.py alike [--requests 200] [--files 8] [--slots 2] [--rate 1] [--seed 0]
    python benchmarks/lora_server.py memory [--requests 500] [--files 100] [--slots 2] [--plot FILE] [--seed 0]

`alike` sends requests at random times to a server in this process, draws each again alone, and counts the pictures that
are not the same bit for bit, and the programs that were compiled. `memory` sends them to a `jaxl serve`, some at once,
and tells the memory of its process as they are answered. Both write files with random numbers for `tiny`: LoRAs of
ranks 4 to 128, DoRAs, and full differences, which need weights of their own. A request has up to three, with strengths
of both signs, asked for by name or by a tag for a part of the steps. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from safetensors.numpy import save_file

from jaxl.backend import open_backend
from jaxl.bench.measure import compilations
from jaxl.call.options import LoadOptions
from jaxl.engine import Engine
from jaxl.loading import open_pipeline
from jaxl.run.adapters import layers
from jaxl.run.model import Model
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.weights.layout import to_torch
from replicas import running

PATH = "/v1/images/generations"
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
# of files, over and over: the kind, the rank, and what is in the paths of its layers
KINDS = (
    ("lora", 4, ""),
    ("lora", 16, "attentions"),
    ("dora", 16, ""),
    ("lora", 64, "attentions"),
    ("lora", 8, ""),
    ("full", 0, "conv1"),
    ("lora", 32, "attentions"),
    ("lora", 128, "attentions"),
)
ROOM = 128  # of the ranks of an image's LoRAs
SCHEDULERS = ("euler", "euler_a", "heun", "ddim", "dpm++2m_karras", "lcm")
SIZE = "64x64"  # where only memory counts
AT_ONCE = 8  # requests, of which some wait
ROWS_OF_TABLE = 20

Body = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="trial", required=True)
    for trial, requests, files in ((alike, 200, 8), (memory, 500, 100)):
        own = kinds.add_parser(trial.__name__)
        own.set_defaults(run=trial)
        own.add_argument("--requests", type=int, default=requests)
        own.add_argument("--files", type=int, default=files)
        own.add_argument("--slots", type=int, default=2)
        own.add_argument("--seed", type=int, default=0)
    kinds.choices["alike"].add_argument("--rate", type=float, default=1.0, help="requests a second")
    kinds.choices["memory"].add_argument("--plot", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), args.files)
        random = np.random.default_rng(args.seed)
        bodies = [some_request(random, files) for _ in range(args.requests)]
        print(json.dumps(args.run(args, Path(folder), bodies, random)))


def alike(args: Any, folder: Path, bodies: Sequence[Body], random: np.random.Generator) -> dict[str, Any]:
    """Return how many pictures differ from those drawn alone, and which programs were compiled after the start."""
    backend = open_backend("tiny", slots=args.slots, chunks=1, lora_dir=folder, lora_rank=ROOM)
    began = time.monotonic()
    waits = np.cumsum(random.exponential(1 / args.rate, len(bodies)))
    with compilations() as compiled, Engine(backend, max_waiting=len(bodies)) as engine:
        app = create_app(Service(engine, Settings(**{**backend.defaults, "deadline": 3600.0})))

        async def draw() -> tuple[list[bytes], list[bytes]]:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://trial", timeout=None) as client:

                async def later(wait: float, body: Body) -> bytes:
                    await asyncio.sleep(wait)
                    return await picture(client, body)

                together = await asyncio.gather(*map(later, waits, bodies))
                print(f"together after {time.monotonic() - began:.0f} s")
                return list(together), [await picture(client, body) for body in bodies]

        together, alone = asyncio.run(draw())
        calls = engine.stats()
    other = [body for body, one, two in zip(bodies, together, alone, strict=True) if one != two]
    for body in other:
        print("differs:", body)
    return {
        "requests": len(bodies),
        "different": len(set(alone)),
        "wrong": len(other),
        "compiled": compiled,
        "rows_of_a_call": round(calls.rows_done / calls.calls, 2),
        "seconds": round(time.monotonic() - began),
    }


def memory(args: Any, folder: Path, bodies: Sequence[Body], _: np.random.Generator) -> dict[str, Any]:
    """Return the growth of the server's memory over the last half of its answers, and how many were none."""
    options = {"port": 0, "size": SIZE, "slots": args.slots, "chunks": 1, "lora-dir": folder, "lora-rank": ROOM}
    command = (sys.executable, "-m", "jaxl", "serve", *(f"--{name}={value}" for name, value in options.items()))
    used: list[float] = []
    began = time.monotonic()
    with running(*command) as server:
        process = psutil.Process(server.process.pid)

        async def draw() -> list[bytes | str]:
            free = asyncio.Semaphore(AT_ONCE)
            async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:

                async def one(body: Body) -> bytes | str:
                    async with free:
                        try:
                            return await picture(client, body)
                        except (httpx.HTTPError, RuntimeError) as error:
                            return f"{type(error).__name__}: {error}"
                        finally:
                            look()

                return list(await asyncio.gather(*map(one, bodies)))

        def look() -> None:
            if len(used) % (len(bodies) // ROWS_OF_TABLE or 1) == 0:
                print(f"| {len(used)} | {process.memory_info().rss / 2**20:.0f} |", flush=True)
            used.append(process.memory_info().rss / 2**20)

        print("| answered | MiB |\n| --- | --- |")
        look()
        answers = asyncio.run(draw())
    lost = [answer for answer in answers if isinstance(answer, str)]
    for answer in lost:
        print("lost:", answer)
    if args.plot:
        plot(args.plot, used)
    half = len(used) // 2
    slope = float(np.polyfit(range(half, len(used)), used[half:], 1)[0])
    return {
        "requests": len(bodies),
        "files": args.files,
        "lost": len(lost),
        "mib": {"start": round(used[0]), "half": round(used[half]), "end": round(used[-1]), "most": round(max(used))},
        "mib_per_request_of_last_half": round(slope, 3),
        "seconds": round(time.monotonic() - began),
    }


async def picture(client: httpx.AsyncClient, body: Body) -> bytes:
    """Return the pixels of a request's picture. Raises RuntimeError with what the server says instead."""
    response = await client.post(PATH, json=body)
    if response.status_code != 200:
        raise RuntimeError(f"{response.status_code} {response.text}")
    return Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"]))).tobytes()


def some_request(random: np.random.Generator, files: dict[str, int]) -> Body:
    """Return a request for up to three of the files, by name and rank, whose ranks are together in the room."""
    names: list[str] = []
    for name in random.choice(list(files), int(random.integers(4)), replace=False):
        if sum(files[each] for each in (*names, name)) <= ROOM:
            names.append(str(name))
    strengths = {name: round(float(random.choice([-1, 1]) * random.uniform(0.2, 1.0)), 2) for name in names}
    body: Body = {
        "prompt": f"a cat, number {random.integers(1000)}",
        "seed": int(random.integers(2**32)),
        "num_inference_steps": int(random.integers(2, 5)),
        "scheduler": str(random.choice(SCHEDULERS)),
    }
    if random.random() < 0.7:
        return {**body, "loras": strengths}
    tags = "".join(f" <lora:{name}:{strength}:stop=0.5>" for name, strength in strengths.items())
    return {**body, "prompt": body["prompt"] + tags, "prompt_syntax": "lenient"}


def write_files(folder: Path, count: int) -> dict[str, int]:
    """Write files for `tiny`, and return the rank of each by its name."""
    model = open_pipeline("tiny", LoadOptions()).model
    ranks = {}
    for number in range(count):
        kind, rank, within = KINDS[number % len(KINDS)]
        ranks[f"{kind}{number}"] = rank
        write_file(folder / f"{kind}{number}.safetensors", model, number, kind, rank, within)
    return ranks


def write_file(file: Path, model: Model, seed: int, kind: str, rank: int, within: str) -> None:
    """Write random numbers for the layers whose paths have `within` in them, under the names that sd-scripts writes."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for network, prefix in PREFIXES.items():
        for path, leaf in layers(model, network).items():
            if within not in path:
                continue
            shape = [leaf[axis] for axis in to_torch(f"{path}.weight", leaf)]
            outputs, inputs, *window = shape
            name, fan_in = f"{prefix}_{path.replace('.', '_')}", np.sqrt(np.prod(shape[1:]))
            if kind == "full":
                tensors[f"{name}.diff"] = 0.3 * rng.standard_normal(shape) / fan_in
                continue
            tensors[f"{name}.lora_down.weight"] = rng.standard_normal((rank, inputs, *window)) / fan_in
            up = rng.standard_normal((outputs, rank, *(1 for _ in window)))
            tensors[f"{name}.lora_up.weight"] = 0.3 * up / np.sqrt(rank)
            tensors[f"{name}.alpha"] = np.array(rank)
            if kind == "dora":
                tensors[f"{name}.dora_scale"] = rng.uniform(0.8, 1.2, (outputs, *(1 for _ in shape[1:])))
    save_file({key: array.astype(np.float16) for key, array in tensors.items()}, file)


def plot(file: Path, used: Sequence[float]) -> None:
    """Write a picture of the memory by answered requests."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(used)
    axes.set(xlabel="answered requests", ylabel="resident memory, MiB", ylim=(0, None))
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
