"""Small pictures of latents without an autoencoder: a linear map from channels to colours, fitted by least squares.

The maps of SDXL's VAE and of Playground v2.5's scale of it are those that ComfyUI publishes (`comfy/latent_formats.py`,
https://github.com/Comfy-Org/ComfyUI); training/tiny/preview_factors.py fits that of `tiny`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxl.config import TinyVAEConfig, VAEConfig
from jaxl.errors import CheckpointError

Factors = tuple[tuple[float, float, float], ...]  # red, green and blue of each channel, and last the offset; -1..1

SDXL: Factors = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)
PLAYGROUND: Factors = (
    (0.3920, 0.4054, 0.4549),
    (-0.2634, -0.0196, 0.0653),
    (0.0568, 0.1687, -0.0755),
    (-0.3112, -0.2359, -0.2076),
    (0.0, 0.0, 0.0),
)
TINY: Factors = (
    (0.2544, -0.4145, 0.7611),
    (0.2720, -0.4868, 0.3027),
    (-0.0156, -0.0140, 0.3653),
    (0.3940, 0.3397, -0.2044),
    (0.2449, 0.2212, 0.0413),
)
TINY_CHANNELS = (32, 64, 96, 96)


def preview_factors(cfg: VAEConfig | TinyVAEConfig) -> Factors:
    """The map for an autoencoder's latents: SDXL's, unless its config tells another that is known.

    Raises CheckpointError if its latents have another number of channels than SDXL's.
    """
    if cfg.latent_channels != len(SDXL) - 1:
        raise CheckpointError(
            f"vae/config.json: no preview is known for latent_channels={cfg.latent_channels}, only for {len(SDXL) - 1}"
        )
    if isinstance(cfg, VAEConfig) and cfg.channels == TINY_CHANNELS:
        return TINY
    return PLAYGROUND if isinstance(cfg, VAEConfig) and cfg.latents_mean else SDXL


def latents_to_rgb(latents: Array, cfg: VAEConfig | TinyVAEConfig) -> Array:
    """Latents as the U-Net has them [B, h, w, C] -> images [B, h, w, 3] float32 in 0..1, clipped."""
    *weights, offset = preview_factors(cfg)
    colours = jnp.einsum("...c,cr->...r", latents.astype(jnp.float32), jnp.array(weights)) + jnp.array(offset)
    return jnp.clip(colours / 2 + 0.5, 0.0, 1.0)
