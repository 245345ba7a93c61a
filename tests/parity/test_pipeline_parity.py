"""From prompt to latents and image: jaxl beside diffusers, with the same weights and the same initial noise."""

from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FAMILIES, THIN
from pipelines import SCHEDULERS, TINY, random_pipeline
from torch_weights import relative_error

import jaxl

PROMPTS = ["a rocket on a purple background, noto style", "A LLAMA!! on a hill — naïve 🦙"]
NEGATIVES = ["a cat", ""]


@pytest.fixture(scope="module")
def tiny_reference() -> Any:
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(ours: Any, theirs: Any, scheduler: str, noise: np.ndarray, *, steps: int, **settings: Any) -> None:
    """Latents within 2e-4, relative; images within 1/255 on 99.9 % of the values."""
    pipe, params = ours
    height, width = (8 * n for n in noise.shape[1:3])
    calls = {
        "prompt": PROMPTS,
        "negative_prompt": NEGATIVES,
        "guidance_scale": 5.0,
        "height": height,
        "width": width,
    } | settings
    kind, options = SCHEDULERS[scheduler]
    original = theirs.scheduler
    theirs.scheduler = kind.from_config(original.config, **options)
    torch_noise = torch.from_numpy(noise).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = theirs(**calls, num_inference_steps=steps, latents=torch_noise, output_type="latent").images
        theirs.scheduler = original
        decoded = theirs.vae.decode(wanted / theirs.vae.config.scaling_factor).sample.permute(0, 2, 3, 1).numpy()
    got = pipe.generate(params, **calls, steps=steps, scheduler=scheduler, latents=noise, output="numpy")
    assert relative_error(got.latents, wanted.permute(0, 2, 3, 1)) < 2e-4
    assert np.mean(np.abs(got.images - np.clip(decoded / 2 + 0.5, 0, 1)) <= 1 / 255) > 0.999


@pytest.mark.parametrize("scheduler", ["euler", "euler_karras", "ddim", "dpm++2m", "dpm++2m_karras"])
def test_tiny(tiny: Any, tiny_reference: Any, scheduler: str) -> None:
    noise = np.random.default_rng(1).standard_normal((2, 16, 16, 4), np.float32)
    compare(tiny, tiny_reference, scheduler, noise, steps=6)


def test_second_prompts_sizes_and_clip_skip(small: Any, reference: Any) -> None:
    # one image: with more, diffusers gives some of them the negative sizes for the positive ones
    noise = np.random.default_rng(2).standard_normal((1, 8, 8, 4), np.float32)
    compare(
        small,
        reference,
        "euler",
        noise,
        steps=3,
        prompt=PROMPTS[0],
        prompt_2="a castle",
        negative_prompt=NEGATIVES[0],
        negative_prompt_2="a tree",
        clip_skip=1,
        original_size=(200, 300),
        crops_coords_top_left=(10, 20),
        target_size=(256, 512),
        negative_original_size=(64, 72),
        negative_crops_coords_top_left=(3, 4),
        negative_target_size=(80, 88),
    )


def test_without_guidance(small: Any, reference: Any) -> None:
    noise = np.random.default_rng(3).standard_normal((2, 8, 8, 4), np.float32)
    compare(small, reference, "euler", noise, steps=3, guidance_scale=1.0)


def test_another_size(small: Any, reference: Any) -> None:
    """136 x 200 pixels are 17 x 25 latents: odd at every level of the U-Net."""
    noise = np.random.default_rng(4).standard_normal((2, 25, 17, 4), np.float32)
    compare(small, reference, "euler", noise, steps=2)


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(("family", "schedulers"), [("base", [{}, ZERO_SNR]), ("ssd-1b", [{}]), ("vega", [{}])])
def test_a_random_model_of_each_family(family: str, schedulers: list[dict[str, Any]], tmp_path: Path) -> None:
    """Saved by diffusers with SDXL's own zeros for a missing negative prompt, opened by jaxl."""
    mesh, opened = jaxl.make_mesh(jax.devices()[:1]), []
    for number, options in enumerate(schedulers):
        theirs = random_pipeline(THIN[family], options)
        theirs.save_pretrained(tmp_path / str(number))
        opened.append(jaxl.from_pretrained(tmp_path / str(number), dtype=jnp.float32, mesh=mesh))
        noise = np.random.default_rng(5).standard_normal((2, 8, 8, 4), np.float32)
        compare(opened[-1], theirs, "euler", noise, steps=4, negative_prompt=None)


def test_refiner(tmp_path: Path) -> None:
    """One text encoder and five size ids, the last an aesthetic score; beside diffusers' network on every input."""
    theirs = random_pipeline(THIN["refiner"] | {"cross_attention_dim": 32}, {})
    components = {k: v for k, v in theirs.components.items() if k not in ("image_encoder", "feature_extractor")}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(
        **components | {"text_encoder": None, "tokenizer": None},
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    refiner.save_pretrained(tmp_path / "refiner")
    pipe, params = jaxl.from_pretrained(tmp_path / "refiner", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    noise = np.random.default_rng(6).standard_normal((1, 8, 8, 4), np.float32)
    settings: dict[str, Any] = {"steps": 1, "latents": noise, "output": "latents", "width": 64, "height": 64}
    got = pipe.generate(params, "a cat", original_size=(90, 80), crops_coords_top_left=(2, 3), **settings).latents

    scheduler = refiner.scheduler
    scheduler.set_timesteps(1)
    latents = torch.from_numpy(noise).permute(0, 3, 1, 2) * scheduler.init_noise_sigma
    (t,) = scheduler.timesteps
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = refiner.encode_prompt("a cat", negative_prompt="")
        added = {
            "text_embeds": torch.cat([negative_pooled, pooled]),
            "time_ids": torch.tensor([[90.0, 80, 2, 3, 2.5], [90.0, 80, 2, 3, 6.0]]),
        }
        scaled = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        without, toward = refiner.unet(scaled, t, torch.cat([negative, embeds]), added_cond_kwargs=added).sample.chunk(
            2
        )
        wanted = scheduler.step(without + 5.0 * (toward - without), t, latents).prev_sample
    assert relative_error(got, wanted.permute(0, 2, 3, 1)) < 2e-4


def test_inpainting_model_loads_and_asks_for_a_picture(tmp_path: Path) -> None:
    theirs = random_pipeline(FAMILIES["inpainting"], {})
    theirs.save_pretrained(tmp_path / "inpainting")
    pipe, params = jaxl.from_pretrained(tmp_path / "inpainting")
    with pytest.raises(jaxl.InputError, match="this model repaints pictures"):
        pipe.generate(params, "a cat")
