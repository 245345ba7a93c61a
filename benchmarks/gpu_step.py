"""What each kernel is worth: a guided step and a decoded picture with each of them, on the device that is here.

    python benchmarks/gpu_step.py [--batch N] [--steps N] [--runs N] [--vae-dtype bfloat16]

Full-size SDXL with random weights, in bfloat16, all variants in turns, medians; on a CPU the embedded model's shapes,
so that the command can be tried. `distance` is how far the latents are from those of XLA's forms, root mean square over
theirs. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxl.diffusion.noise import image_key
from jaxl.diffusion.tables import build_table
from jaxl.kernels import Kernels
from jaxl.presets import SDXL_BASE
from jaxl.run.bucket import Beginning, Bucket, Conditioning
from jaxl.run.model import Model
from jaxl.run.programs import ADVANCE, DECODE, GATHER, START, Programs
from jaxl.run.sharding import make_mesh, place_parameters
from jaxl.weights.layout import flatten, unflatten
from jaxl.weights.source import open_checkpoint

# XLA makes one product of several with the same input: then it joins their weights and takes the result apart
UNMERGED = {"xla_gpu_dot_merger_threshold_mb": 0}
VARIANTS: dict[str, dict[str, tuple[Kernels, dict[str, Any]]]] = {
    "cpu": {"xla": (Kernels(), {}), "small scores": (Kernels.of("cpu"), {})},
    "gpu": {
        "xla": (Kernels(), {}),
        "cudnn attention": (Kernels(attention="cudnn"), {}),
        "+ unmerged products": (Kernels(attention="cudnn"), UNMERGED),
        "+ triton norm": (Kernels(attention="cudnn", group_norm="triton"), {}),
        "+ both": (Kernels(attention="cudnn", group_norm="triton"), UNMERGED),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vae-dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()

    device = jax.devices()[0]
    mesh = make_mesh([device])
    model = Model.from_configs(open_checkpoint("tiny").configs if device.platform == "cpu" else SDXL_BASE)
    bucket = Bucket(args.batch, model.default_size, model.default_size, guided=True)
    shapes = place_parameters(model.shapes(jnp.bfloat16, jnp.dtype(args.vae_dtype)), mesh, split=False)
    params = {part: random_params(shapes[part]) for part in ("unet", "vae")}

    compiled: dict[str, tuple[Callable[..., Any], ...]] = {}
    compile_s: dict[str, float] = {}
    for name, (kernels, options) in VARIANTS[device.platform].items():
        programs = Programs(replace(model, kernels=kernels), mesh, shapes)
        began = time.perf_counter()
        compiled[name] = tuple(
            programs.trace(program, bucket).lower().compile(compiler_options=options) for program in (ADVANCE, DECODE)
        )
        compile_s[name] = time.perf_counter() - began

    programs = Programs(model, mesh, shapes)
    begin, cond = (
        partial(programs.get(START, bucket), beginning(programs, bucket, args.steps)),
        told(programs, bucket, params),
    )
    step_ms, decode_ms = ({name: [] for name in compiled} for _ in range(2))
    latents: dict[str, np.ndarray] = {}
    for run in range(args.runs + 1):  # the first warms up
        for name, (advance, decode) in compiled.items():
            slots = jax.block_until_ready(begin())
            seconds, slots = timed(advance, params["unet"], slots, cond, np.int32(args.steps))
            decode_seconds, _ = timed(decode, params["vae"], slots.latents)
            latents[name] = np.asarray(slots.latents)
            if run:
                step_ms[name].append(1e3 * seconds / args.steps)
                decode_ms[name].append(1e3 * decode_seconds)

    exact = latents["xla"]
    rows = {
        name: {
            "step_ms": round(statistics.median(step_ms[name]), 3),
            "decode_ms": round(statistics.median(decode_ms[name]), 3),
            "distance": float(np.sqrt(np.square(latents[name] - exact).mean() / np.square(exact).mean())),
            "compile_s": round(compile_s[name], 1),
        }
        for name in compiled
    }
    print(f"| {device.device_kind}, {args.batch} images | step, ms | decode, ms | distance | compiled in, s |")
    print("| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['step_ms']} | {row['decode_ms']} | {row['distance']:.2g} | {row['compile_s']} |")
    print(json.dumps({"device": device.device_kind, "jax": jax.__version__, **vars(args), "variants": rows}))


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


def beginning(programs: Programs, bucket: Bucket, steps: int) -> Beginning:
    """Noise, and the table of Euler."""
    b, latents = bucket.batch, np.zeros(bucket.latents_shape(programs.target.model), np.float32)
    table = build_table(programs.target.model.scheduler, steps, "euler")
    return Beginning(
        rows=np.stack([table.rows] * b),
        first=np.zeros(b, np.int32),
        end=np.full(b, steps, np.int32),
        keys=np.stack([image_key(seed) for seed in range(b)]),
        noise_scale=np.full(b, table.init_scale, np.float32),
        given=np.zeros(b, bool),
        noise=latents,
        picture_scale=np.zeros(b, np.float32),
        picture=latents,
        mask=np.ones((*latents.shape[:3], 1), np.float32),
    )


def told(programs: Programs, bucket: Bucket, params: dict[str, Any]) -> Conditioning:
    """Random texts."""
    rng = np.random.default_rng(0)

    def random(leaf: Array) -> np.ndarray:
        return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)

    branches = [[jax.tree.map(random, programs.zero_text())] for _ in range(bucket.branches)]
    context, pooled = programs.get(GATHER, bucket)(params["unet"], [branches] * bucket.batch)
    size = [bucket.height, bucket.width]
    return Conditioning(
        context=context,
        pooled=pooled,
        time_ids=np.tile(np.array([*size, 0, 0, *size], np.float32), (bucket.batch, bucket.branches, 1)),
        lengths=None,
        freeu=None,
        inpaint=None,
        adapters=None,
        controls=(),
    )


def timed(run: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(run(*args))
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
