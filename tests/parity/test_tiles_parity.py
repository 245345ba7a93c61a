"""MultiDiffusion around diffusers' U-Net, written here in PyTorch: a mean of tiles that fade out linearly."""

from itertools import product
from typing import Any

import numpy as np
import torch
from pipelines import SCHEDULERS
from torch_weights import relative_error

NOISE = np.random.default_rng(3).standard_normal((1, 10, 12, 4), np.float32)
CALL: dict[str, Any] = {"prompt": "a rocket", "guidance_scale": 4.0, "width": 96, "height": 80}
TILE, ROWS, COLUMNS = 8, (0, 2), (0, 4)  # latents


def fading(start: int, last: int, shared: int) -> torch.Tensor:
    """What a tile counts, from its first row or column to its last: half a step from nothing to one."""
    ramp, weights = (torch.arange(shared) + 0.5) / shared, torch.ones(TILE)
    weights[:shared] *= ramp if start else 1
    weights[TILE - shared :] *= ramp.flip(0) if start < last else 1
    return weights


def test_latents(small: Any, reference: Any) -> None:
    reference.scheduler = SCHEDULERS["euler"][0].from_config(reference.scheduler.config)
    whole = reference.unet.forward

    def in_tiles(x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        total, weights = torch.zeros_like(x), torch.zeros(x.shape[2:])
        for top, left in product(ROWS, COLUMNS):
            part = slice(top, top + TILE), slice(left, left + TILE)
            weight = fading(top, ROWS[-1], 6)[:, None] * fading(left, COLUMNS[-1], 4)
            total[:, :, *part] += weight * whole(x[:, :, *part], *args, **kwargs)[0]
            weights[part] += weight
        return (total / weights,)

    reference.unet.forward = in_tiles
    pipe, params = small
    told: dict[str, Any] = {"original_size": (64, 64), "target_size": (64, 64)}
    got = pipe.generate(params, **CALL, tile_size=64, steps=3, scheduler="euler", latents=NOISE, output="latents")
    with torch.no_grad():
        noise = torch.from_numpy(NOISE).permute(0, 3, 1, 2)
        wanted = reference(**CALL, **told, num_inference_steps=3, latents=noise, output_type="latent").images
    assert relative_error(got.latents, wanted.permute(0, 2, 3, 1)) < 2e-4
