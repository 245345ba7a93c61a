"""How far pictures in eight bits are from the exact ones, and what they cost: the same prompts and seeds all ways.

    python benchmarks/quality.py [--model tiny] [--precision int8 fp8 ...] [--pictures 16] [--prompts 56]
                                 [--steps 20] [--dtype float32]

For each precision: PSNR and SSIM against the exact run, the retrieval score (`jaxl.bench.quality.retrieval`: is the
picture nearest to the exact picture of its own prompt, among exact pictures of --prompts prompts with other seeds?),
the size of the U-Net, and the seconds of one picture's steps, medians of runs in turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxl
from jaxl.bench.quality import compare, retrieval
from jaxl.weights.quantise import PRECISIONS

CONCEPTS = Path(__file__).parents[1] / "training" / "tiny" / "concepts.txt"
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "gray", "white", "black")
OTHER_SEEDS = 1000


def captions(count: int) -> list[str]:
    """Captions of `count` of tiny's things, in turn on its backgrounds and in its styles."""
    things = [line.split(": ")[1].split("|")[0].strip() for line in CONCEPTS.read_text().splitlines() if ": " in line]
    chosen = things[:: len(things) // count][:count]
    return [
        f"{thing} on {'an' if COLOURS[i % 12] == 'orange' else 'a'} {COLOURS[i % 12]} background, "
        f"{('flat', 'noto')[i % 2]} style"
        for i, thing in enumerate(chosen)
    ]


def draw(pipe: jaxl.Pipeline, params: Any, prompts: list[str], first_seed: int, **settings: Any) -> np.ndarray:
    """One picture of each prompt, one at a time."""
    results = [
        pipe.generate(params, prompt, seed=first_seed + i, output="numpy", **settings)
        for i, prompt in enumerate(prompts)
    ]
    return np.concatenate([np.asarray(result.images) for result in results])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--pictures", type=int, default=16, help="each way, of the first prompts")
    parser.add_argument("--prompts", type=int, default=56)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    prompts = captions(args.prompts)
    mesh = jaxl.make_mesh(jax.devices()[:1])
    names = [None, *args.precision]
    loaded = {name: jaxl.from_pretrained(args.model, dtype=args.dtype, mesh=mesh, precision=name) for name in names}
    references = draw(*loaded[None], prompts, OTHER_SEEDS, steps=args.steps)
    images = {name: draw(*loaded[name], prompts[: args.pictures], 0, steps=args.steps) for name in names}
    seconds: dict[str | None, list[float]] = {name: [] for name in names}
    for _ in range(args.runs):
        for name, (pipe, params) in loaded.items():
            seconds[name].append(pipe.generate(params, prompts[0], steps=args.steps).timings["denoise"])

    table = {}
    for name in names:
        params = loaded[name][1]["unet"]
        table[name or "exact"] = {
            **compare(images[None], images[name]).summary(),
            "retrieval": float(retrieval(images[name], references).mean()),
            "unet_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20,
            "seconds": float(np.median(seconds[name])),
        }
    columns = list(table["exact"])
    print(f"{'':10s} " + " ".join(f"{column:>12s}" for column in columns))
    for name, row in table.items():
        print(f"{name:10s} " + " ".join(f"{row[column]:12.3f}" for column in columns))
    # JSON has no infinity, which is the PSNR of the exact pictures
    results = {n: {k: round(v, 4) if np.isfinite(v) else None for k, v in r.items()} for n, r in table.items()}
    print(json.dumps(vars(args) | {"results": results}))


if __name__ == "__main__":
    main()
