"""What kinds of guidance cost: seconds of the steps of one picture of `tiny`, in turns, medians, as a Markdown table.

python benchmarks/guidance.py [--runs N] [--steps N]
"""

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp

import jaxl

KINDS: dict[str, dict[str, Any]] = {
    "guidance_scale=5": {},
    "guidance_scale=1": {"guidance_scale": 1.0},
    "guidance_interval=(0.2, 0.8)": {"guidance_interval": (0.2, 0.8)},
    "guidance_interval=(0, 0.5)": {"guidance_interval": (0.0, 0.5)},
    "guidance_rescale=0.7": {"guidance_rescale": 0.7},
    "pag_scale=2": {"pag_scale": 2.0},
    "freeu": {"freeu": (0.6, 0.4, 1.1, 1.2)},
    "two chunks of text": {"negative_prompt": "BREAK blurry"},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    pipe, params = jaxl.from_pretrained("tiny", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for run in range(arguments.runs + 1):
        for kind, options in KINDS.items():
            result = pipe.generate(params, "a llama", steps=arguments.steps, output="latents", **options)
            if run:  # the first compiles
                seconds[kind].append(result.timings["denoise"])
    base = statistics.median(seconds["guidance_scale=5"])
    print(f"| {arguments.steps} steps | seconds | of plain guidance |\n| --- | --- | --- |")
    for kind, each in seconds.items():
        median = statistics.median(each)
        print(f"| {kind} | {median:.3f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
