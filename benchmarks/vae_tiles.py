"""What decoding in tiles changes in a picture, and how much memory it saves.

    python benchmarks/vae_tiles.py [--model tiny] [--size 512] [--memory-size 2048]

Prints two Markdown tables: pictures of the model decoded in tiles against the same decoded whole, in float32; and the
temporary memory of the compiled program at the shapes of SDXL's VAE, which is compiled and not run. A seam is the mean
slope of the difference across the lines where tiles end, over that elsewhere: 1 is none. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxl
from jaxl.config import VAEConfig
from jaxl.nn.tiles import decode_tiled, tile_starts
from jaxl.nn.vae import decode, from_latents, vae_shapes
from jaxl.presets import SDXL_BASE

PROMPTS = [
    "a red apple on a blue background, flat style",
    "a rocket on a purple background, noto style",
    "a penguin on a red background, noto style",
    "a castle on a pink background, flat style",
]
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", type=int, default=512, help="height and width of the pictures in pixels")
    parser.add_argument("--tiles", type=int, nargs="+", default=[128, 256, 384], help="pixels each way")
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 32, 64])
    parser.add_argument("--memory-size", type=int, default=2048, help="height and width for the second table")
    parser.add_argument("--memory-tiles", type=int, nargs="+", default=[512, 1024])
    args = parser.parse_args()
    report = {"quality": quality(args), "memory": memory(args)}
    print(json.dumps(vars(args) | report))


def quality(args: argparse.Namespace) -> list[dict[str, Any]]:
    pipe, params = jaxl.from_pretrained(args.model, dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    vae: Any = pipe.model.vae
    result = pipe.generate(
        params, PROMPTS, seed=list(range(len(PROMPTS))), width=args.size, height=args.size, steps=20, output="latents"
    )
    latents = from_latents(jnp.asarray(result.latents), vae)

    def pictures(run: Any) -> np.ndarray:
        """One at a time, in levels of 0..255."""
        compiled = jax.jit(run)
        images = [np.asarray(compiled(params["vae"], latents[i : i + 1])) for i in range(len(latents))]
        return np.clip(np.concatenate(images) / 2 + 0.5, 0, 1) * 255

    whole = pictures(lambda p, x: decode(p, vae, x))
    print("| tile | overlap | tiles | PSNR, dB | RMS, levels | largest | seam |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for tile in args.tiles:
        for overlap in (overlap for overlap in args.overlaps if overlap < tile):
            difference = pictures(partial(_tiled, vae, tile, overlap)) - whole
            starts = tile_starts(args.size // vae.factor, tile // vae.factor, overlap // vae.factor)
            squares = np.mean(difference**2, axis=(1, 2, 3))
            row = {
                "tile": tile,
                "overlap": overlap,
                "tiles": len(starts) ** 2,
                "psnr_db": float(np.mean(20 * np.log10(255) - 10 * np.log10(squares))),
                "rms": float(np.sqrt(np.mean(squares))),
                "largest": float(np.abs(difference).max()),
                "seam": seam(difference, [n * vae.factor for n in starts], tile),
            }
            rows.append(row)
            print("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |", flush=True)
    return rows


def seam(difference: np.ndarray, starts: list[int], tile: int) -> float:
    """The slope of the difference [B, N, N, 3] across tiles' ends over its slope elsewhere, both ways."""
    size = difference.shape[1]
    ends = sorted({edge - 1 for start in starts for edge in (start, start + tile)} - {-1, size - 1})
    down, right = np.abs(np.diff(difference, axis=1)), np.abs(np.diff(difference, axis=2)).swapaxes(1, 2)
    slopes = np.concatenate([down, right]).mean((0, 2, 3))
    return float(slopes[ends].mean() / np.delete(slopes, ends).mean())


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    vae = VAEConfig.from_json(SDXL_BASE["vae"])
    side = args.memory_size // vae.factor
    latents = jax.ShapeDtypeStruct((1, side, side, vae.latent_channels), jnp.float32)
    print("\n| tile | temporaries, MiB | compiled in, s |\n| --- | --- | --- |")
    rows = []
    for tile in (*args.memory_tiles, args.memory_size):
        began = time.perf_counter()
        run = jax.jit(partial(_tiled, vae, tile, None))
        analysis: Any = run.lower(vae_shapes(vae, jnp.float32), latents).compile().memory_analysis()
        row = {"tile": tile, "temporaries_mib": round(analysis.temp_size_in_bytes / MIB)}
        rows.append(row)
        print(f"| {tile} | {row['temporaries_mib']} | {time.perf_counter() - began:.0f} |", flush=True)
    return rows


def _tiled(vae: Any, tile: int, overlap: int | None, params: Any, latents: jax.Array) -> jax.Array:
    return decode_tiled(params, vae, latents, tile, overlap)


if __name__ == "__main__":
    main()
