"""Fit the linear map from latents to colours that jaxl.nn.preview has for this model.

python preview_factors.py --model DIR

Least squares between the latents of pictures that the model draws and the pictures themselves, averaged over the pixels
of a latent. Prints the map (a row per channel and the offset; colours in -1..1) and how near it comes on pictures that
it was not fitted to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from captions import full_caption
from networks import Pipeline, load_pipeline
from scenes import SceneSampler, load_concepts

SEED, SIZE, CHUNK = 0, 256, 8


@torch.no_grad()
def draw(pipeline: Pipeline, captions: list[str], steps: int) -> tuple[Tensor, Tensor]:
    """Latents [B, 4, h, w] as the U-Net has them, and the pictures' mean colours [B, 3, h, w] in -1..1."""
    parts = []
    for start in range(0, len(captions), CHUNK):
        chunk = captions[start : start + CHUNK]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
        settings = {"num_inference_steps": steps, "height": SIZE, "width": SIZE, "output_type": "latent"}
        latents = pipeline(chunk, generator=seeds, **settings).images
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)
        parts.append((latents, avg_pool2d(images, SIZE // latents.shape[-1])))
    latents, colours = zip(*parts, strict=True)
    return torch.cat(latents), torch.cat(colours)


def by_latent(maps: Tensor) -> np.ndarray:
    """[B, C, h, w] -> [B * h * w, C]."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1]).double().numpy()


def with_offset(latents: np.ndarray) -> np.ndarray:
    return np.concatenate([latents, np.ones((len(latents), 1))], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=64, help="a quarter of them is kept for the check")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()

    concepts = load_concepts()
    sampler = SceneSampler(concepts, SEED)
    captions = [full_caption(sampler.draw(), concepts) for _ in range(args.pictures)]
    latents, colours = (by_latent(maps) for maps in draw(load_pipeline(args.model), captions, args.steps))
    fitted = len(latents) * 3 // 4
    factors = np.linalg.lstsq(with_offset(latents[:fitted]), colours[:fitted], rcond=None)[0]
    print(np.array2string(factors, precision=4, suppress_small=True, separator=", "))
    guess, truth = (with_offset(latents[fitted:]) @ factors).clip(-1, 1), colours[fitted:]
    correlation = [np.corrcoef(guess[:, i], truth[:, i])[0, 1] for i in range(3)]
    print(f"PSNR {10 * np.log10(4 / np.mean((guess - truth) ** 2)):.1f} dB, correlation {np.round(correlation, 3)}")


if __name__ == "__main__":
    main()
