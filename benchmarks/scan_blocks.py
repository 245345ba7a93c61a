"""Transformer blocks unrolled, as jaxl has them, scanned over a stack, and sliced out of it: to compile and to run.

    python benchmarks/scan_blocks.py [--depth 10] [--width 320] [--tokens 256] [--runs 5]

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.kernels import Kernels
from jaxl.nn.layers import Params
from jaxl.nn.unet import transformer_block, transformer_block_shapes

CONTEXT = 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--width", type=int, default=320, help="channels, 64 to a head")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    kernels = Kernels.of_device(jax.devices()[0])
    rng = np.random.default_rng(0)

    def random(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.standard_normal(shape.shape, np.float32) / np.sqrt(shape.shape[0])

    def block() -> tuple[Params, Params]:
        told = {name: rng.standard_normal((2, CONTEXT, args.width), np.float32) for name in ("k", "v")}
        return jax.tree.map(random, transformer_block_shapes(args.width, args.width, jnp.float32)), told

    def step(x: jax.Array, p: tuple[Params, Params]) -> jax.Array:
        return transformer_block(p[0], x, p[1], args.width // 64, kernels, None, None, {})

    def unrolled(blocks: list[Any], x: jax.Array) -> jax.Array:
        for each in blocks:
            x = step(x, each)
        return x

    def scanned(stack: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, each: (step(x, each), None), x, stack)[0]

    def sliced(stack: Any, x: jax.Array) -> jax.Array:
        return unrolled([jax.tree.map(lambda a, i=i: a[i], stack) for i in range(args.depth)], x)

    blocks = [block() for _ in range(args.depth)]
    stack = jax.tree.map(lambda *each: np.stack(each), *blocks)
    x = rng.standard_normal((2 * args.tokens, args.width), np.float32)
    ways = {"unrolled": (unrolled, blocks), "scanned": (scanned, stack), "sliced": (sliced, stack)}
    report: dict[str, Any] = {}
    runs = {}
    for name, (function, params) in ways.items():
        given = jax.device_put((params, x))
        began = time.perf_counter()
        runs[name] = jax.jit(function).lower(*given).compile(), given
        report[name] = {"compile_s": round(time.perf_counter() - began, 2)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.runs + 1):
        for name, (run, given) in runs.items():
            began = time.perf_counter()
            run(*given).block_until_ready()
            if turn:
                times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        report[name]["run_ms"] = round(statistics.median(seconds) * 1e3, 1)
        print(f"{name:9}", report[name])
    print(json.dumps(vars(args) | {"jax": jax.__version__, "ways": report}))


if __name__ == "__main__":
    main()
