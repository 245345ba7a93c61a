"""What each kernel and each precision is worth: a guided step and a decoded picture, on the device that is here.

    python benchmarks/gpu_step.py [--compare switches|precisions] [--model random:sdxl] [--size N] [--batch N,...]
                                  [--steps N] [--runs N] [--jobs N] [--vae-dtype bfloat16]

Random weights, made on the device, in bfloat16; all variants in turns, medians. Without --model that is full-size SDXL,
or on a CPU the embedded model's shapes, so that the command can be tried. `distance` is how far the latents are from
those of the first variant, root mean square over theirs; in eight bits it says little, as all inputs are taken to reach
the same magnitude instead of what was measured for each layer. Precisions do not concern decoding, which is left out.
With several --jobs variants compile beside each other, so each takes longer. Memory is that of a step by the compiler's
account. Each number of images has a table and a line of JSON as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxl.bench.random_model import MODELS
from jaxl.diffusion.noise import image_key
from jaxl.diffusion.tables import build_table
from jaxl.kernels import Kernels
from jaxl.run.bucket import Beginning, Bucket, Conditioning
from jaxl.run.model import Model
from jaxl.run.programs import ADVANCE, DECODE, GATHER, START, Programs
from jaxl.run.sharding import make_mesh, place_parameters
from jaxl.weights.layout import flatten, unflatten
from jaxl.weights.quantise import PRECISIONS, Precision, layers, quantise_params, quantised_shapes

# XLA makes one product of several with the same input: then it joins their weights and takes the result apart
UNMERGED = {"xla_gpu_dot_merger_threshold_mb": 0}
LARGEST = 8.0  # magnitude of a quantised layer's inputs, which no calibration measured


@dataclass(frozen=True)
class Variant:
    kernels: Kernels
    options: Mapping[str, Any] | None = None  # of XLA
    precision: Precision | None = None


SWITCHES: Mapping[str, Mapping[str, Variant]] = {
    "cpu": {"xla": Variant(Kernels()), "small scores": Variant(Kernels.of("cpu"))},
    "gpu": {
        "xla": Variant(Kernels()),
        "cudnn attention": Variant(Kernels(attention="cudnn")),
        "+ unmerged products": Variant(Kernels(attention="cudnn"), UNMERGED),
        "+ triton norm": Variant(Kernels(attention="cudnn", group_norm="triton")),
        "+ both": Variant(Kernels(attention="cudnn", group_norm="triton"), UNMERGED),
    },
}


def precisions(device: Any) -> dict[str, Variant]:
    """Return bfloat16 and those of eight bits that the platform has units for, with the device's own kernels."""
    kernels = Kernels.of_device(device)
    # convolutions in int8 are refused on GPUs, see `read_precision`; of the rest, what differs most
    names = ("int8", "fp8", "fp8+conv")
    eight = {name: Variant(kernels, precision=PRECISIONS[name]) for name in names}
    return {"bfloat16": Variant(kernels), **eight}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", default="switches", choices=["switches", "precisions"])
    parser.add_argument("--model", choices=[f"random:{name}" for name in MODELS])
    parser.add_argument("--size", type=int, help="pixels of a side; the model's own by default")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--vae-dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()

    device = jax.devices()[0]
    mesh = make_mesh([device])
    args.model = args.model or ("random:tiny" if device.platform == "cpu" else "random:sdxl")
    model = Model.from_configs(MODELS[args.model.removeprefix("random:")]()[0])
    variants = SWITCHES[device.platform] if args.compare == "switches" else precisions(device)
    exact = model.shapes(jnp.bfloat16, jnp.dtype(args.vae_dtype))
    shapes = {
        variant.precision: place_parameters(
            {**exact, "unet": quantised_shapes(exact["unet"], variant.precision)} if variant.precision else exact,
            mesh,
            split=False,
        )
        for variant in variants.values()
    }
    params = {part: random_params(shapes[None][part]) for part in ("unet", "vae")}
    unets = {precision: quantised(params["unet"], precision, shapes[precision]["unet"]) for precision in shapes}
    side = args.size or model.default_size
    for batch in map(int, args.batch.split(",")):
        bucket = Bucket(batch, side, side, guided=True)
        with ThreadPoolExecutor(args.jobs) as pool:
            compiling = {
                name: pool.submit(
                    compile_both,
                    Programs(replace(model, kernels=variant.kernels), mesh, shapes[variant.precision]),
                    bucket,
                    variant.options,
                    decodes=args.compare == "switches",
                )
                for name, variant in variants.items()
            }
        compiled = {name: each.result() for name, each in compiling.items()}
        rows = measure(variants, compiled, Programs(model, mesh, shapes[None]), bucket, params, unets, args)
        columns = list(next(iter(rows.values())))
        print(f"| {device.device_kind}, {args.model}, {side}x{side}, {batch} images | {' | '.join(columns)} |")
        print("| --- " * (1 + len(columns)) + "|")
        for name, row in rows.items():
            print(f"| {name} | {' | '.join(f'{value:.5g}' for value in row.values())} |")
        facts = {"device": device.device_kind, "jax": jax.__version__, **vars(args), "batch": batch}
        print(json.dumps({**facts, "variants": rows}), flush=True)


@dataclass(frozen=True)
class Compiled:
    """The program of some steps, and that of decoding unless it is left out."""

    advance: Any
    decode: Any
    seconds: float


def compile_both(programs: Programs, bucket: Bucket, options: Mapping[str, Any] | None, *, decodes: bool) -> Compiled:
    began = time.perf_counter()
    advance, decode = (
        programs.trace(program, bucket).lower().compile(compiler_options=dict(options or {})) if wanted else None
        for program, wanted in ((ADVANCE, True), (DECODE, decodes))
    )
    return Compiled(advance, decode, time.perf_counter() - began)


def measure(
    variants: Mapping[str, Variant],
    compiled: Mapping[str, Compiled],
    programs: Programs,
    bucket: Bucket,
    params: Mapping[str, Any],
    unets: Mapping[Precision | None, Any],
    args: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Return a row of figures for each variant, all measured in turns."""
    begin = partial(programs.get(START, bucket), beginning(programs, bucket, args.steps))
    cond = told(programs, bucket, params["unet"])
    step_ms, decode_ms = ({name: [] for name in compiled} for _ in range(2))
    latents: dict[str, np.ndarray] = {}
    for run in range(args.runs + 1):  # the first warms up
        for name, made in compiled.items():
            slots = jax.block_until_ready(replace(begin(), features=programs.no_features(bucket)))
            unet, more = unets[variants[name].precision], ((), programs.none_given(bucket))
            seconds, slots = timed(made.advance, unet, slots, cond, np.int32(args.steps), *more)
            latents[name] = np.asarray(slots.latents)
            if run:
                step_ms[name].append(1e3 * seconds / args.steps)
            if made.decode is not None:
                seconds, _ = timed(made.decode, params["vae"], slots.latents)
                decode_ms[name].append(1e3 * seconds)
    first = next(iter(latents.values()))

    def row(name: str, made: Compiled) -> dict[str, float]:
        memory: Any = made.advance.memory_analysis()
        taken = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        distance = np.sqrt(np.square(latents[name] - first).mean() / np.square(first).mean())
        return {
            "step_ms": statistics.median(step_ms[name]),
            **({"decode_ms": statistics.median(decode_ms[name][1:])} if made.decode is not None else {}),
            "distance": float(distance),
            "compile_s": made.seconds,
            "memory_gib": taken / 2**30,
        }

    return {name: row(name, made) for name, made in compiled.items()}


def random_params(shapes: dict[str, Any]) -> dict[str, Any]:
    """On the device: norms at 1, biases at 0, others normal with the variance of 1 / inputs."""

    @partial(jax.jit, static_argnums=1)
    def normal(key: Array, leaf: jax.ShapeDtypeStruct) -> Array:
        return jax.random.normal(key, leaf.shape, leaf.dtype) / np.sqrt(np.prod(leaf.shape[:-1])).astype(leaf.dtype)

    leaves = flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return unflatten(
        {
            path: jnp.full(leaf.shape, path.endswith("weight"), leaf.dtype)
            if len(leaf.shape) == 1
            else normal(key, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
            for key, (path, leaf) in zip(keys, leaves.items(), strict=True)
        }
    )


def quantised(unet: dict[str, Any], precision: Precision | None, shapes: dict[str, Any]) -> dict[str, Any]:
    if precision is None:
        return unet
    return quantise_params(flatten(unet), dict.fromkeys(layers(unet), LARGEST), precision, shapes)


def beginning(programs: Programs, bucket: Bucket, steps: int) -> Beginning:
    """Noise, and the table of Euler."""
    b, latents = bucket.batch, np.zeros(bucket.latents_shape(programs.target.model), np.float32)
    table = build_table(programs.target.model.scheduler, steps, "euler")
    return Beginning(
        rows=np.stack([table.rows] * b),
        first=np.zeros(b, np.int32),
        end=np.full(b, steps, np.int32),
        keys=np.stack([image_key(seed) for seed in range(b)]),
        variation_keys=np.stack([image_key(0)] * b),
        variation=np.zeros(b, np.float32),
        noise_scale=np.full(b, table.init_scale, np.float32),
        given=np.zeros(b, bool),
        noise=latents,
        picture_scale=np.zeros(b, np.float32),
        picture=latents,
        mask=np.ones((*latents.shape[:3], 1), np.float32),
    )


def told(programs: Programs, bucket: Bucket, unet: dict[str, Any]) -> Conditioning:
    """Random texts."""
    rng = np.random.default_rng(0)

    def random(leaf: Array) -> np.ndarray:
        return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)

    branches = [[jax.tree.map(random, programs.zero_text())] for _ in range(bucket.branches)]
    context, pooled = programs.get(GATHER, bucket)(unet, [branches] * bucket.batch)
    size = [bucket.height, bucket.width]
    return Conditioning(
        context=context,
        pooled=pooled,
        time_ids=np.tile(np.array([*size, 0, 0, *size], np.float32), (bucket.batch, bucket.branches, 1)),
        lengths=None,
        blur=None,
        freeu=None,
        inpaint=None,
        adapters=None,
        regions=(),
        controls=(),
        image_prompts=(),
    )


def timed(run: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(run(*args))
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
