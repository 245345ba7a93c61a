"""jaxl beside diffusers on PyTorch: the same model, prompt, steps and precision, in turns, on the same machine.

    python benchmarks/against_diffusers.py [--model tiny] [--batch 1] [--steps 10] [--runs 5] [--compile]

Needs torch, diffusers and transformers. Prints medians and their ratio (above 1: jaxl is faster), then JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

import jaxl
from jaxl.weights.source import EMBEDDED

PROMPT = "a rocket on a purple background, noto style"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a folder in diffusers' layout, or tiny")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile the U-Net")
    args = parser.parse_args()

    source: Any = EMBEDDED.get(args.model, args.model)
    theirs: Any = StableDiffusionXLPipeline.from_pretrained(source, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    if args.compile:
        theirs.unet = torch.compile(theirs.unet)
    ours, params = jaxl.from_pretrained(args.model, dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))

    def run_theirs(output: str) -> None:
        theirs([PROMPT] * args.batch, num_inference_steps=args.steps, guidance_scale=5.0, output_type=output)

    def run_ours(output: Any) -> None:
        ours.generate(params, [PROMPT] * args.batch, steps=args.steps, guidance_scale=5.0, output=output)

    report: dict[str, Any] = vars(args) | {"jax": jax.__version__, "torch": torch.__version__}
    report["threads"] = torch.get_num_threads()
    for name, per, their_output, our_output in (
        ("guided step, ms", 1000 / args.steps, "latent", "latents"),
        ("image, s", 1 / args.batch, "pil", "pil"),
    ):
        other, own = in_turns(lambda o=their_output: run_theirs(o), lambda o=our_output: run_ours(o), args.runs)
        report[name] = {"diffusers": round(other * per, 3), "jaxl": round(own * per, 3), "ratio": round(other / own, 2)}
        print(f"{name:16} {report[name]}")
    print(json.dumps(report))


def in_turns(first: Callable[[], None], second: Callable[[], None], runs: int) -> tuple[float, float]:
    """Median seconds of each, one after the other again and again, after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for function, kept in zip((first, second), times, strict=True):
            began = time.perf_counter()
            function()
            if turn:
                kept.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
