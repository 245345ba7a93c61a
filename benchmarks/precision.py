"""How far bfloat16 weights and compute are from float32: the same prompts and seeds both ways.

    python benchmarks/precision.py [--model tiny] [--steps 25]

Prints the peak signal-to-noise ratio of the images; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxl

PROMPTS = [
    "a red apple on a blue background, flat style",
    "a rocket on a purple background, noto style",
    "a penguin on a red background, noto style",
    "a castle on a pink background, flat style",
    "a llama on a green background, noto style",
    "a dolphin and a party popper on a yellow background, noto style",
    "a tree on a white background, noto style",
    "a car on a gray background, noto style",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        pipe, params = jaxl.from_pretrained(args.model, dtype=dtype, mesh=jaxl.make_mesh(jax.devices()[:1]))
        settings: dict[str, Any] = {"steps": args.steps, "output": "numpy"}
        results.append(pipe.generate(params, PROMPTS, seed=list(range(len(PROMPTS))), **settings))
    exact, coarse = results
    psnr = [float(-10 * np.log10(np.mean((a - b) ** 2))) for a, b in zip(exact.images, coarse.images, strict=True)]
    latents = float(np.sqrt(np.mean((exact.latents - coarse.latents) ** 2) / np.mean(exact.latents**2)))
    for prompt, value in zip(PROMPTS, psnr, strict=True):
        print(f"{value:6.1f} dB  {prompt}")
    report = {"psnr_db_median": float(np.median(psnr)), "psnr_db_least": min(psnr), "latents_relative_error": latents}
    print(json.dumps(vars(args) | {name: round(value, 4) for name, value in report.items()}))


if __name__ == "__main__":
    main()
