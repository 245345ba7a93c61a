"""What an autoencoder makes of pictures, and how near that is to them."""

from __future__ import annotations

import torch
from torch import Tensor

from networks import Vae

CHUNK = 16  # pictures in one go


@torch.no_grad()
def reconstruct(vae: Vae, images: Tensor) -> Tensor:
    """images [B, RGB, H, W] in -1..1 as the autoencoder gives them back (from the latents' means), float32."""
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.float() for part in images.split(CHUNK)]
    return torch.cat(parts).clamp(-1, 1)


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over the images of the peak signal-to-noise ratio in dB; values in -1..1."""
    errors = (output - target).square().mean((1, 2, 3))
    return float((10 * (4 / errors).log10()).mean())
