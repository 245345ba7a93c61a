"""Seams of pictures in tiles, by what neighbours share, and the memory that a large one takes.

    python benchmarks/tiled_diffusion.py seams [--model tiny] [--plot FILE]
    python benchmarks/tiled_diffusion.py memory [--model random:mid] [--sizes 1024 2048 4096] [--tile 512]

`seams`: pictures of three by three tiles, which share exactly so many pixels. A seam is the mean slope of a picture
across the lines where tiles end, over that of the rows beside them: 1 where nothing is to be seen. The
windows are how much a tile counts: all of it the same ("mean", MultiDiffusion's), less towards its border ("linear",
jaxl's), or a bell ("gaussian", that of Mixture of Diffusers, arXiv:2302.02412). `memory` draws pictures in a step or
a few, and prints what programs need beside their arguments and results, the most memory that the process has had, and
seconds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxl
import jaxl.run.tiles
from jaxl.bench.memory import peak_resident
from jaxl.bench.random_model import source_of
from jaxl.nn.tiles import tile_weights
from jaxl.run.programs import ADVANCE, DECODE

PROMPTS = ["a red apple on a blue background, flat style", "a castle on a pink background, flat style"]
GIB = 2**30


def mean(starts: list[int], tile: int, scale: int) -> np.ndarray:
    return _normal(starts, np.ones(tile * scale))


def gaussian(starts: list[int], tile: int, scale: int) -> np.ndarray:
    x = np.linspace(-0.5, 0.5, tile * scale)
    return _normal(starts, np.exp(-(x**2) / 0.02))


def _normal(starts: list[int], window: np.ndarray) -> np.ndarray:
    total = np.zeros(starts[-1] + len(window))
    for start in starts:
        total[start : start + len(window)] += window
    return np.stack([window / total[start : start + len(window)] for start in starts]).astype(np.float32)


OWN = "linear"
WINDOWS: dict[str, Any] = {"mean": mean, OWN: tile_weights, "gaussian": gaussian}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seams", "memory"])
    parser.add_argument("--model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--windows", nargs="+", default=[*WINDOWS], choices=[*WINDOWS])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 32, 64, 96, 128])
    parser.add_argument("--plot", type=Path, help="a .png file for a plot of the seams")
    args = parser.parse_args()
    print(json.dumps(vars(args) | {"found": (seams if args.what == "seams" else memory)(args)}, default=str))


def seams(args: argparse.Namespace) -> list[dict[str, Any]]:
    mesh, found = jaxl.make_mesh(jax.devices()[:1]), []
    print("| window | shared | latents | picture |\n| --- | --- | --- | --- |")
    for overlap, window in product(args.overlaps, args.windows):
        if not overlap and window != OWN:  # where nothing is shared, they are the same
            continue
        jaxl.run.tiles.tile_weights = WINDOWS[window]
        pipe, params = jaxl.from_pretrained(args.model or "tiny", dtype=jnp.float32, mesh=mesh)
        tile = pipe.model.default_size
        side = 3 * tile - 2 * overlap
        how = {"tile_size": tile, "tile_overlap": overlap, "width": side, "height": side}
        result = pipe.generate(params, PROMPTS, steps=args.steps or 12, output="numpy", **how)
        both = zip(result.latents, np.asarray(result.images), strict=True)
        latents, picture = np.mean([[seam(each, tile, overlap) for each in own] for own in both], axis=0)
        found.append({"window": window, "overlap": overlap, "latents": latents, "picture": picture})
        print(f"| {window} | {overlap} | {latents:.2f} | {picture:.2f} |", flush=True)
        del pipe, params, result  # another window is another program, which pipelines share while there are any
        gc.collect()
    if args.plot:
        plot(found, args.plot)
    return found


def seam(picture: np.ndarray, tile: int, overlap: int) -> float:
    """The slope of a picture [N, N, C] of three by three tiles across their ends, over that of the rows beside them.

    A latent's own row spreads over that of its pixels and the neighbours', so rows beside it begin two latents away.
    """
    scale = picture.shape[0] / (3 * tile - 2 * overlap)
    starts = [round(i * (tile - overlap) * scale) for i in range(3)]
    across = np.array(sorted({*starts[1:], *(start + round(tile * scale) for start in starts[:2])})) - 1
    latent = round(8 * scale)
    beside = [across + sign * offset for sign in (-1, 1) for offset in range(2 * latent, 4 * latent)]
    slopes = [np.abs(np.diff(picture, axis=axis)).mean((1 - axis, 2)) for axis in (0, 1)]
    return float(np.mean([own[across].mean() / own[np.array(beside)].mean() for own in slopes]))


def plot(found: list[dict[str, Any]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True)
    for axis, kind in zip(axes, ("latents", "picture"), strict=True):
        for window in dict.fromkeys(each["window"] for each in found):
            own = [each for each in found if each["window"] == window or not each["overlap"]]
            axis.plot([each["overlap"] for each in own], [each[kind] for each in own], marker="o", label=window)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(
            title=f"slope across the ends of tiles, {kind}", xlabel="pixels shared by tiles of 256", ylim=(0, None)
        )
    axes[0].set_ylabel("over that beside them")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    model = source_of(args.model or "random:mid")
    pipe, params = jaxl.from_pretrained(model, dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    found: list[dict[str, Any]] = [{"loaded_gib": peak_resident() / GIB}]
    for side in args.sizes:
        how: Any = {"width": side, "height": side, "tile_size": args.tile, "steps": args.steps or 1}
        plan, began = pipe.plan("a castle", **how, guidance_scale=args.guidance), time.perf_counter()
        # what the compiler plans for, beside weights, latents and pixels
        pipe.compile(plan)
        large: tuple[Any, ...] = ADVANCE, DECODE
        planned = {each.name: pipe.programs.get(each, plan.bucket) for each in large}
        temporaries = {f"{name}_gib": each.memory_analysis().temp_size_in_bytes / GIB for name, each in planned.items()}
        found.append({"side": side, **temporaries})
        if not args.compile_only:
            result = pipe.run(params, plan)
            assert result.images[0].size == (side, side)
            found[-1] |= {"peak_gib": peak_resident() / GIB, "seconds": time.perf_counter() - began}
        print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    main()
