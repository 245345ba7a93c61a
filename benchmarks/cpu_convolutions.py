"""3x3 convolutions of float32 on this processor: XLA's, Winograd's in blocks, and those of enlarged pictures.

    taskset -c 0 python benchmarks/cpu_convolutions.py [--runs N]

Shapes are those of SDXL's networks and of smaller ones. In turns; processor time, the median, as the GFLOP/s that a
plain convolution would need for it. `whole` is Winograd's of the whole picture at once. `in the small picture` is of
one that is enlarged to these pixels. The output is a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.kernels import Kernels, winograd
from jaxl.nn.layers import conv, upsampled_conv

# images, pixels on a side, inputs, outputs
SHAPES = (
    *((1, 32, 512, 512), (1, 64, 96, 96), (1, 64, 256, 256), (1, 128, 64, 64), (1, 128, 128, 128), (1, 256, 64, 64)),
    *((1, 256, 256, 256), (1, 512, 128, 128), (2, 32, 1280, 1280), (2, 64, 640, 640), (2, 128, 320, 320)),
)
OWN = Kernels(conv="winograd")


def seconds_of(run: Callable[[], jax.Array]) -> float:
    began = time.process_time()
    run().block_until_ready()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    names = ("XLA's", "whole", "in blocks", "enlarged, XLA's", "in the small picture")
    print(f"| | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}")
    for images, side, inputs, outputs in SHAPES:
        pictures, small = (
            jnp.asarray(random.standard_normal((images, pixels, pixels, inputs), np.float32))
            for pixels in (side, side // 2)
        )
        p = {
            "weight": jnp.asarray(random.standard_normal((3, 3, inputs, outputs), np.float32)),
            "bias": jnp.zeros(outputs),
        }
        own = jnp.asarray(winograd.transformed(p["weight"]))
        larger = partial(upsampled_conv, height=side, width=side)
        calls = {
            "XLA's": (conv, p, pictures),
            "in blocks": (lambda own, x: winograd.convolve(x, own), own, pictures),
            "enlarged, XLA's": (larger, p, small),
            "in the small picture": (partial(larger, kernels=OWN), p, small),
        }
        runs = {name: partial(jax.jit(run).lower(p, x).compile(), p, x) for name, (run, p, x) in calls.items()}
        jax.clear_caches()  # or the next would be taken for the same
        with patch.object(winograd, "BLOCK_BYTES", 2**40):
            whole = jax.jit(lambda own, x: winograd.convolve(x, own)).lower(own, pictures).compile()
        runs["whole"] = partial(whole, own, pictures)
        seconds = {name: [] for name in names}
        for _ in range(args.runs):
            for name in names:
                seconds[name].append(seconds_of(runs[name]))
        work = 2 * 9 * images * side**2 * inputs * outputs / 1e9
        cells = [f"{work / statistics.median(seconds[name]):.0f}" for name in names]
        print(f"| {images} x {side}x{side}, {inputs} to {outputs} | {' | '.join(cells)} |", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
