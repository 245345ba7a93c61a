"""How diffusers' SDXL pipelines scale latents around the autoencoder, with and without a mean and deviation."""

from types import SimpleNamespace
from typing import Any

import diffusers
import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_weights import randomize, relative_error, tree

from jaxl.config import VAEConfig
from jaxl.errors import CheckpointError
from jaxl.nn.vae import decode, encode, from_latents, to_latents

TOLERANCE = 2e-5
# Playground v2.5's
NORMALISED: dict[str, Any] = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}
SCALES = [{"scaling_factor": 0.13025}, NORMALISED]


def new_vae(scale: dict[str, Any]) -> Any:
    raw = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    return randomize(
        diffusers.AutoencoderKL(**raw, block_out_channels=[16, 24, 32], norm_num_groups=8, **scale), seed=8
    )


@pytest.mark.parametrize("scale", SCALES, ids=["plain", "normalised"])
def test_a_picture_to_start_from(scale: dict[str, Any]) -> None:
    reference = new_vae(scale)
    cfg = VAEConfig.from_json(dict(reference.config))
    images = np.random.default_rng(9).uniform(-1, 1, (1, 16, 24, 3)).astype(np.float32)
    pipeline: Any = SimpleNamespace(vae=reference)
    with torch.no_grad():
        wanted = diffusers.StableDiffusionXLImg2ImgPipeline.prepare_latents(
            pipeline,
            torch.from_numpy(images).permute(0, 3, 1, 2),
            timestep=None,
            batch_size=1,
            num_images_per_prompt=1,
            dtype=torch.float32,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(10),
            add_noise=False,
        ).permute(0, 2, 3, 1)
    mean, log_variance = jax.jit(encode, static_argnums=1)(tree(reference), cfg, images)
    noise = torch.randn((1, 4, 4, 6), generator=torch.Generator().manual_seed(10)).permute(0, 2, 3, 1).numpy()
    got = to_latents(mean + jnp.exp(log_variance / 2) * noise, cfg)
    assert relative_error(got, wanted) < TOLERANCE
    assert relative_error(to_latents(from_latents(got, cfg), cfg), got) < 1e-6


@pytest.mark.parametrize("scale", SCALES, ids=["plain", "normalised"])
def test_latents_to_a_picture(scale: dict[str, Any]) -> None:
    reference = new_vae(scale)
    cfg = VAEConfig.from_json(dict(reference.config))
    unet: Any = randomize(diffusers.UNet2DConditionModel(**families.BASE), seed=11)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=reference,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def run(output_type: str) -> np.ndarray:
        images = pipeline(
            prompt_embeds=torch.zeros(1, 7, 48),
            pooled_prompt_embeds=torch.zeros(1, 24),
            latents=torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(12)) / 8,
            guidance_scale=1.0,
            num_inference_steps=1,
            height=64,
            width=64,
            output_type=output_type,
        ).images
        return images.permute(0, 2, 3, 1).numpy()

    latents, wanted = run("latent"), run("pt") * 2 - 1
    got = jax.jit(decode, static_argnums=1)(tree(reference), cfg, from_latents(jnp.asarray(latents), cfg))
    assert (np.abs(wanted) < 1).mean() > 0.3  # the pipeline clips
    assert relative_error(np.clip(got, -1, 1), wanted) < TOLERANCE


def test_the_config() -> None:
    plain, normalised = VAEConfig.from_json({}), VAEConfig.from_json(NORMALISED)
    assert (plain.latents_mean, plain.latents_std, plain.force_upcast) == (None, None, True)
    assert (normalised.latents_mean, normalised.latents_std) == tuple(
        tuple(NORMALISED[name]) for name in ("latents_mean", "latents_std")
    )
    shifted = VAEConfig.from_json({"latent_channels": 16, "shift_factor": 0.1159})
    assert (shifted.latents_mean, shifted.latents_std) == ((0.1159,) * 16, (1.0,) * 16)
    with pytest.raises(CheckpointError, match=r"both shift_factor=0\.1 and latents_mean"):
        VAEConfig.from_json({**NORMALISED, "shift_factor": 0.1})
    assert not VAEConfig.from_json({"force_upcast": False}).force_upcast
    for raw in ({"latents_mean": [0.0] * 4}, NORMALISED | {"latents_std": [1.0]}, NORMALISED | {"latent_channels": 8}):
        with pytest.raises(CheckpointError, match=r"latents_mean=.* and latents_std=.* are not both of"):
            VAEConfig.from_json(raw)
