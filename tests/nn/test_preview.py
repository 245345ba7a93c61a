"""Pictures of latents by a linear map: whose map, and how near it comes for the embedded model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.config import TinyVAEConfig, VAEConfig
from jaxl.errors import CheckpointError
from jaxl.nn.preview import PLAYGROUND, SDXL, TINY, latents_to_rgb, preview_factors
from jaxl.presets import SDXL_BASE
from jaxl.weights.source import open_checkpoint

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden.npz")
EMBEDDED = VAEConfig.from_json(open_checkpoint("tiny").configs["vae"])
BASE = VAEConfig.from_json(SDXL_BASE["vae"])


def test_whose_map() -> None:
    assert preview_factors(EMBEDDED) is TINY
    assert preview_factors(BASE) is SDXL
    assert preview_factors(TinyVAEConfig.from_json({})) is SDXL
    assert preview_factors(dataclasses.replace(BASE, channels=(1, 2), norm_num_groups=1)) is SDXL
    assert preview_factors(dataclasses.replace(BASE, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)) is PLAYGROUND
    with pytest.raises(CheckpointError, match="latent_channels=16, only for 4"):
        preview_factors(dataclasses.replace(BASE, latent_channels=16))


def test_real_latents() -> None:
    """Against the decoded picture, averaged over the pixels of a latent."""
    latents = GOLDEN["final_latents"].transpose(0, 2, 3, 1)
    colours = np.clip(GOLDEN["image"].transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    colours = colours.reshape(4, 32, 8, 32, 8, 3).mean((2, 4))

    def psnr(cfg: VAEConfig) -> float:
        preview = jax.jit(latents_to_rgb, static_argnums=1)(jnp.asarray(latents, jnp.bfloat16), cfg)
        assert preview.dtype == jnp.float32
        return float(-10 * np.log10(np.mean(np.square(preview - colours))))

    assert psnr(EMBEDDED) > 18 > psnr(BASE)
