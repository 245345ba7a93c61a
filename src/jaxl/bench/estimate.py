"""What full-size programs would need on TPUs that are not there: memory, time and money, by the compiler's account.

The compiler for TPUs runs on any machine. It says exactly what memory a program takes, and estimates what each
operation costs; see `hlo`. What lies between programs, such as copies from the host, is not in it.

As a program of its own it reads one request from standard input and writes JSON, one object a line, to standard output:
`{"compiling": kind}` while it works, and the report at last. It ends when its input does, so that it never outlives
whoever started it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxl.bench import hlo
from jaxl.bench.hlo import Rates
from jaxl.config import EMPTY, ControlNetConfig, IPAdapterConfig, ResamplerConfig, UNetConfig, VisionConfig
from jaxl.errors import InputError, JaxlError, nearest
from jaxl.extras import install_command

GIB = 2**30
# must be set before jax is imported
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else it refuses while another process has it loaded
}
TOP = 12
MAX_BATCH = 256
# what a ControlNet's transformers have of the U-Net's depth, at a level that may be the last, as in those that are
# published: https://huggingface.co/diffusers/controlnet-canny-sdxl-1.0, and -mid and -small
CONTROLNETS: Mapping[str, Callable[[int, bool], int]] = {
    "full": lambda depth, last: depth,
    "mid": lambda depth, last: 1 if last else EMPTY,
    "small": lambda depth, last: 0,
}
EMBEDDING = (16, 32, 96, 256)
# IP-Adapter Plus and its encoder, as at https://huggingface.co/h94/IP-Adapter
VIT_H = VisionConfig(224, 14, 1280, 5120, 32, 16, "gelu", 1e-5, 1024)
RESAMPLER = ResamplerConfig(1280, 4, 20, 5120)
PLUS_TOKENS = 16


@dataclass(frozen=True)
class Chip:
    """A TPU. `cores` are what jax calls devices where nobody joins them; the figures are of a whole chip.

    `link_bytes_per_s` is that of one link to a neighbour, one way.
    """

    name: str
    clock_hz: float
    bf16_flops: float
    bytes_per_s: float
    memory_bytes: int
    link_bytes_per_s: float
    cores: int = 1
    axes: int = 2

    @property
    def rates(self) -> Rates:
        """Return what one core does in a cycle."""
        cycles = self.clock_hz * self.cores
        return Rates(self.bf16_flops / cycles, self.bytes_per_s / cycles)


# Google Cloud, pages "TPU v4", "TPU v5e" and "TPU v6e"; the clock is what makes the units' size the peak rate. Links:
# Austin et al. 2025, How to Scale Your Model, "TPU specs"
CHIPS: Mapping[str, Chip] = {
    "v4": Chip("TPU v4", 1.05e9, 275e12, 1228e9, 32 * GIB, 45e9, cores=2, axes=3),
    "v5e": Chip("TPU v5e", 1.5e9, 197e12, 819e9, 16 * GIB, 50e9),
    "v6e": Chip("TPU v6e", 1.75e9, 918e12, 1640e9, 32 * GIB, 100e9),
}


@dataclass(frozen=True)
class Topology:
    """A number of chips of one kind, joined as a grid."""

    chip: Chip
    generation: str
    grid: tuple[int, ...]

    @property
    def chips(self) -> int:
        product = 1
        for axis in self.grid:
            product *= axis
        return product

    @property
    def name(self) -> str:
        """Return the name that the compiler has for it."""
        return f"{self.generation}:{'x'.join(map(str, self.grid))}"


def read_topology(text: str) -> Topology:
    """Read `v5e:2x2` or `v5e-4`; for v4, the number in `v4-8` is of cores, two a chip. Raises InputError for others."""
    match = re.fullmatch(r"(v\w+?)(?::(\d{1,3}(?:x\d{1,3})*)|-(\d{1,4}))", text)
    known = "give a grid of chips, such as v5e:2x2, or their number, such as v5e-4"
    if match is None:
        raise InputError("topology", text, known)
    generation, grid, count = match.groups()
    if generation not in CHIPS:
        raise InputError("topology", text, nearest(generation, CHIPS))
    chip = CHIPS[generation]
    if grid:
        axes = tuple(map(int, grid.split("x")))
    else:
        chips, rest = divmod(int(count), chip.cores)
        axes = () if rest else _grid(chips, chip.axes)
    if len(axes) != chip.axes or not all(axis and axis & (axis - 1) == 0 for axis in axes):
        raise InputError("topology", text, f"{known}; {chip.axes} axes, each a power of two")
    return Topology(chip, generation, axes)


def _grid(chips: int, axes: int) -> tuple[int, ...]:
    """The most even grid of a power of two, its longest axis last but for a third axis; () for another number."""
    if chips < 1 or chips & (chips - 1):
        return ()
    height = 1 << (chips.bit_length() - 1) // 2
    return (height, chips // height) if axes == 2 else (height, chips // height, 1)


@dataclass(frozen=True)
class EstimateRequest:
    """A program to be estimated, and on which chips. `batch` is over all chips.

    With a `precision`, one of those of `weights.quantise`, most of the U-Net is in eight bits. With a `lora_rank` the
    programs have room for LoRAs whose ranks sum up to that in each layer of the transformers. With a `controlnet`, one
    of CONTROLNETS, each image follows a picture; with `image_prompts` it is like so many, by IP-Adapter Plus.
    """

    topology: str
    model: str
    width: int | None
    height: int | None
    batch: int | None
    steps: int
    split: bool
    vae_dtype: str | None
    largest_batch: bool
    lora_rank: int = 0
    controlnet: str | None = None
    image_prompts: int = 0
    precision: str | None = None


def estimate(request: EstimateRequest, tell: Callable[[str], None]) -> dict[str, Any]:
    """The report on a request; `tell` hears of each program before it is compiled.

    Raises InputError where the request cannot work, JaxlError where the compiler fails.
    """
    read_topology(request.topology)
    if request.controlnet not in (None, *CONTROLNETS):
        raise InputError("controlnet", request.controlnet, nearest(request.controlnet, CONTROLNETS))
    if request.precision is not None:
        from jaxl.weights.quantise import read_precision  # imports jax

        if read_precision(request.precision, "tpu").decibels is not None:
            remedy = "the layers that stay exact are chosen with the weights, not there; leave the distance out"
            raise InputError("precision", request.precision, remedy)
    if importlib.util.find_spec("libtpu") is None:
        remedy = f"this needs the compiler for TPUs: {install_command('tpu')}"
        raise InputError("topology", request.topology, remedy)
    command = [sys.executable, "-m", "jaxl.bench.estimate"]
    pipe = subprocess.PIPE
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        errors: list[str] = []
        listener = threading.Thread(target=lambda stream: errors.extend(stream), args=(child.stderr,), daemon=True)
        listener.start()
        try:
            child.stdin.write(json.dumps(asdict(request)) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                said = json.loads(line)
                if "compiling" in said:
                    tell(said["compiling"])
                elif "refused" in said:
                    raise InputError(**said["refused"])
                elif "report" in said:
                    return said["report"]
        finally:
            child.kill()
    listener.join(1)
    reason = next((line.strip() for line in reversed(errors) if line.strip()), f"status {child.returncode}")
    raise JaxlError(f"the compiler for TPUs failed: {reason}")


def make_report(request: EstimateRequest, tell: Callable[[str], None]) -> dict[str, Any]:
    """`estimate` in this process, whose environment must be ENVIRONMENT from before jax was imported."""
    import jax
    import jax.numpy as jnp

    from jaxl.call.plan import Devices
    from jaxl.kernels import Kernels
    from jaxl.run.adapters import NO_ROOM, Room
    from jaxl.run.bucket import Bucket
    from jaxl.run.controls import parameter_shapes
    from jaxl.run.image_prompts import CONTEXT, context_shapes, encoder_shapes
    from jaxl.run.model import Model
    from jaxl.run.programs import ADVANCE, DECODE, PICTURE, AnyProgram, Programs, of_pictures
    from jaxl.run.sharding import make_mesh, place_parameters
    from jaxl.weights.quantise import PRECISIONS, quantised_shapes

    topology = read_topology(request.topology)
    devices = _devices(topology)
    mesh = make_mesh(devices)
    configs = _configs(request.model)
    model = Model.from_configs(configs, Kernels.of_device(devices[0]))
    vae_dtype = request.vae_dtype or jnp.dtype(model.vae_dtype(jnp.bfloat16)).name
    trees = model.shapes(jnp.bfloat16, vae_dtype)
    if request.precision is not None:
        trees["unet"] = quantised_shapes(trees["unet"], PRECISIONS[request.precision])
    shapes = place_parameters(trees, mesh, split=request.split)
    how = None if request.split else "auto"
    programs = Programs(model, mesh, shapes, split_parameters=request.split, split_pictures=how)
    width, height = request.width or model.default_size, request.height or model.default_size
    batch = request.batch or len(devices)
    controls = () if request.controlnet is None else (controlnet_config(model.unet, request.controlnet),)
    stay = {**shapes, "controlnet": [parameter_shapes(programs.target, cfg) for cfg in controls]}
    plus = IPAdapterConfig(VIT_H, PLUS_TOKENS, model.unet.cross_attention_dim, RESAMPLER)
    if request.image_prompts:
        stay["ip_adapter"] = {**encoder_shapes(programs.target, plus), CONTEXT: context_shapes(programs.target)}
    resident = {name: sum(map(_bytes_per_device, jax.tree.leaves(tree))) for name, tree in stay.items()}
    room = topology.chip.memory_bytes * topology.chips // len(devices)

    loras = Room(request.lora_rank).rounded
    places = (PLUS_TOKENS,) * request.image_prompts
    bucket = Bucket(
        *(batch, height, width),
        guided=True,
        room=loras,
        text_room=loras,
        controls=controls,
        image_prompts=places,
    )
    bucket = Devices(len(devices), split=how).filled(bucket, model.parts(height))
    batch = bucket.batch
    plainer = {
        "loras": replace(bucket, room=NO_ROOM, text_room=NO_ROOM),
        "controlnet": replace(bucket, controls=()),
        "image_prompts": replace(bucket, image_prompts=()),
    }

    def compiled(program: AnyProgram, bucket: Bucket, what: str = "") -> tuple[Any, dict[str, Any]]:
        tell(f"{program.name}, {bucket.batch} images{what}")
        began = time.perf_counter()
        made = programs.trace(program, bucket).lower().compile()
        memory = _memory(made, program.name, model, resident)
        return made, {**memory, "fits": memory["total"] <= room, "compile_s": time.perf_counter() - began}

    def estimated(program: AnyProgram, bucket: Bucket, what: str = "") -> dict[str, Any]:
        made, facts = compiled(program, bucket, what)
        text = made.as_text()
        found, received = hlo.operations(text, topology.chip.rates), hlo.received(text)
        cycles = hlo.total(found)
        on_links = received.bytes / topology.chip.link_bytes_per_s
        return {
            **facts,
            "seconds": cycles / topology.chip.clock_hz + on_links,
            "link_seconds": on_links,
            "received": asdict(received),
            "cycles": cycles,
            "kinds": hlo.by_kind(found),
            "unknown": sum(operation.cycles is None for operation in found),
            "top": [asdict(operation) for operation in found[:TOP]],
        }

    report: dict[str, Any] = {
        "topology": topology.name,
        "chip": topology.chip.name,
        "chips": topology.chips,
        "devices": len(devices),
        "memory_bytes": room,
        "size": f"{width}x{height}",
        "batch": batch,
        "steps": request.steps,
        "lora_rank": loras.rank,
        "controlnet": request.controlnet,
        "image_prompts": request.image_prompts,
        "split": request.split,
        "model": request.model,
        "dtype": "bfloat16",
        "precision": request.precision,
        "vae_dtype": vae_dtype,
        "versions": {"jax": jax.__version__, "libtpu": _version("libtpu")},
        "programs": {},
    }
    large = (DECODE, ADVANCE)  # where the batch is what takes memory
    small = [each for each in PICTURE if each not in large] + [each for each, _ in of_pictures(bucket, [plus])]
    for program in (*small, *large):
        report["programs"][program.name] = estimated(program, replace(bucket, ip_adapter=plus))
    for what, own in plainer.items():
        if own != bucket:
            report[f"without_{what}"] = estimated(ADVANCE, own, f", without {what}")
    report |= times(report)
    if request.largest_batch:

        def fits(batch: int) -> bool:
            larger = replace(bucket, batch=batch * len(devices))
            return all(compiled(program, larger)[1]["fits"] for program in large)

        report["largest_batch"] = len(devices) * largest(fits, max(1, batch // len(devices)), report["fits"])
    return report


def times(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the times that follow from the programs: a step, a call for the whole batch (two texts), and rates.

    Each image follows a picture of its own, and is like pictures of its own, if any, beside the grey of the negative
    branch.
    """
    seconds = {kind: facts["seconds"] for kind, facts in report["programs"].items()}
    prompts = report.get("image_prompts", 0)
    often = {
        "encode_text": 2,
        "embed_control": report["batch"],
        "embed_image": report["batch"] * prompts + 1,
        "gather_images": prompts,
        "advance": report["steps"],
    }
    call = sum(often.get(kind, 1) * each for kind, each in seconds.items())
    return {
        "fits": all(facts["fits"] for facts in report["programs"].values()),
        "step_s": seconds["advance"],
        "call_s": call,
        "image_s": call / report["batch"],
        "images_per_s": report["batch"] / call,
        "images_per_s_per_chip": report["batch"] / call / report["chips"],
    }


def largest(fits: Callable[[int], bool], known: int, known_fits: bool) -> int:
    """The largest number that fits, by doubling and then by halving the gap; 0 if 1 does not."""
    low, high = (known, None) if known_fits else (0, known)
    while high is None:
        if low >= MAX_BATCH:
            return low
        if fits(2 * low):
            low *= 2
        else:
            high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def controlnet_config(unet: UNetConfig, kind: str) -> ControlNetConfig:
    """Return the config of a ControlNet for a U-Net, of a kind of CONTROLNETS."""
    of_depth, last = CONTROLNETS[kind], len(unet.down) - 1
    down = tuple(tuple(depth and of_depth(depth, i == last) for depth in level) for i, level in enumerate(unet.down))
    mid = unet.mid and tuple(of_depth(depth, True) or EMPTY for depth in unet.mid)
    return ControlNetConfig(replace(unet, down=down, mid=mid), 3, EMBEDDING, bgr=False, pooled=False)


def _devices(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    # a host has four chips of a larger grid, or all of a smaller one
    host = tuple(min(axis, 2) for axis in topology.grid) + (1,) * (3 - len(topology.grid))
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, chips_per_host_bounds=host
        ).devices
    except Exception as error:  # of several types, and with the compiler's own words
        raise InputError("topology", topology.name, " ".join(str(error).split())) from None
    return list(found)


def _configs(name: str) -> Mapping[str, Any]:
    from jaxl.bench.random_model import MODELS
    from jaxl.weights.source import open_checkpoint

    prefix, colon, random = name.partition(":")
    if prefix == "random" and colon:
        if random not in MODELS:
            raise InputError("model", name, nearest(random, MODELS))
        return MODELS[random]()[0]
    return open_checkpoint(name).configs


def _memory(program: Any, kind: str, model: Any, resident: Mapping[str, int]) -> dict[str, int]:
    """Bytes on each device while a program runs. Parameters that it does not take stay beside it."""
    used = {"encode_text": tuple(model.text_encoders), "advance": ("unet", "controlnet"), "decode": ("vae",)}
    uses = used.get(kind, ())
    memory = program.memory_analysis()
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    others = sum(size for name, size in resident.items() if name not in uses)
    if kind in ("gather", "embed_control", "gather_control"):  # take some layers of a network alone
        others -= memory.argument_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    return {"own": own, "temporaries": temporaries, "others": others, "total": own + temporaries + others}


def _bytes_per_device(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for axis in leaf.sharding.shard_shape(leaf.shape):
        size *= axis
    return size


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def _end_with_input() -> None:
    """End this process when nobody is there to write to it any more, even in the middle of the compiler's work."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Serve one request; see the top of this file."""
    request = EstimateRequest(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        said = {"report": make_report(request, lambda kind: print(json.dumps({"compiling": kind}), flush=True))}
    except InputError as error:
        said = {"refused": {"argument": error.argument, "value": error.value, "remedy": error.remedy}}
    print(json.dumps(said), flush=True)
    os._exit(0)  # programs take long to take apart


if __name__ == "__main__":
    main()
