"""Every way to start, beside diffusers' pipelines: image-to-image, inpainting, base and refiner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import THIN
from PIL import Image
from pipelines import as_pipeline, assert_close, latents_of, noise_and_mean, random_pipeline

import jaxl

SIZE = 64
PROMPT: dict[str, Any] = {"prompt": "a rocket", "negative_prompt": "a cat", "guidance_scale": 5.0}
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((1, SIZE // 8, SIZE // 8, 4), np.float32)


def picture(size: int = SIZE) -> Image.Image:
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1))


def mask(size: int = SIZE) -> Image.Image:
    values = np.zeros((size, size), np.uint8)
    values[size // 4 : size // 2 + 5, size // 3 : -3] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("scheduler", "strength"),
    [("euler", 0.3), ("euler", 1.0), ("dpm++2m", 0.6), ("ddim", 0.6), ("heun", 0.6), ("unipc", 0.6)],
)
def test_image_to_image(small: Any, reference: Any, scheduler: str, strength: float) -> None:
    pipe, params = small
    theirs = as_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, reference, scheduler)
    with noise_and_mean(NOISE):
        wanted = latents_of(theirs, **PROMPT, image=picture(), strength=strength, num_inference_steps=7)
    start: dict[str, Any] = {"image": picture(), "strength": strength, "width": SIZE, "height": SIZE}
    got = pipe.generate(params, **PROMPT, **start, steps=7, scheduler=scheduler, latents=NOISE)
    assert_close(got, wanted)


def test_image_to_image_from_latents(small: Any, reference: Any) -> None:
    pipe, params = small
    given = RNG.standard_normal(NOISE.shape, np.float32)
    theirs = as_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, reference)
    with noise_and_mean(NOISE):
        image = torch.from_numpy(given).permute(0, 3, 1, 2)
        wanted = latents_of(theirs, **PROMPT, image=image, strength=0.5, num_inference_steps=6)
    assert_close(pipe.generate(params, **PROMPT, image=given, strength=0.5, steps=6, latents=NOISE), wanted)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m"])
def test_inpainting_with_a_mask(small: Any, reference: Any, scheduler: str, strength: float) -> None:
    pipe, params = small
    theirs = as_pipeline(diffusers.StableDiffusionXLInpaintPipeline, reference, scheduler)
    given: dict[str, Any] = {"image": picture(), "strength": strength, "width": SIZE, "height": SIZE}
    with noise_and_mean(NOISE):
        wanted = latents_of(theirs, **PROMPT, **given, mask_image=mask(), num_inference_steps=5)
    got = pipe.generate(params, **PROMPT, **given, mask=mask(), steps=5, scheduler=scheduler, latents=NOISE)
    assert_close(got, wanted)


def test_a_mask_with_its_surroundings_enlarged_and_pasted_back(small: Any, reference: Any) -> None:
    pipe, params = small
    theirs = as_pipeline(diffusers.StableDiffusionXLInpaintPipeline, reference)
    given: dict[str, Any] = {"image": picture(100), "width": SIZE, "height": SIZE, "padding_mask_crop": 12}
    with noise_and_mean(NOISE), torch.no_grad():
        wanted = theirs(**PROMPT, **given, mask_image=mask(100), strength=1.0, num_inference_steps=4).images[0]
    (got,) = pipe.generate(params, **PROMPT, **given, mask=mask(100), steps=4, latents=NOISE).images
    difference = np.abs(np.asarray(got, np.int16) - np.asarray(wanted.convert("RGB"), np.int16))
    assert np.mean(difference <= 1) > 0.999


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_network_that_sees_the_mask(strength: float, tmp_path: Path) -> None:
    whole = random_pipeline(THIN["inpainting"], {})
    whole.save_pretrained(tmp_path / "model")
    pipe, params = jaxl.from_pretrained(tmp_path / "model", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    theirs = as_pipeline(diffusers.StableDiffusionXLInpaintPipeline, whole)
    given: dict[str, Any] = {"image": picture(), "strength": strength, "width": SIZE, "height": SIZE}
    with noise_and_mean(NOISE):
        wanted = latents_of(theirs, **PROMPT, **given, mask_image=mask(), num_inference_steps=4)
    assert_close(pipe.generate(params, **PROMPT, **given, mask=mask(), steps=4, latents=NOISE), wanted)


@pytest.mark.parametrize(("steps", "spacing"), [(10, "leading"), (25, "trailing")])
def test_base_and_refiner(small: Any, reference: Any, steps: int, spacing: str, tmp_path: Path) -> None:
    """The base stops where the refiner goes on; the refiner has one text encoder and aesthetic scores."""
    config = {**reference.scheduler.config, "timestep_spacing": spacing}
    refiner = random_pipeline(THIN["refiner"] | {"cross_attention_dim": 32}, {"timestep_spacing": spacing})
    theirs = as_pipeline(
        diffusers.StableDiffusionXLImg2ImgPipeline,
        refiner,
        text_encoder=None,
        tokenizer=None,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    theirs.save_pretrained(tmp_path / "refiner")
    second, its_params = jaxl.from_pretrained(
        tmp_path / "refiner", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1])
    )
    base = as_pipeline(diffusers.StableDiffusionXLPipeline, reference)
    base.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    noise = torch.from_numpy(NOISE).permute(0, 3, 1, 2)
    size = {"width": SIZE, "height": SIZE}
    half = latents_of(base, **PROMPT, **size, num_inference_steps=steps, denoising_end=0.8, latents=noise)
    scores: dict[str, Any] = {"aesthetic_score": 7.0, "negative_aesthetic_score": 2.0}
    image = torch.from_numpy(half).permute(0, 3, 1, 2)
    wanted = latents_of(theirs, **PROMPT, **scores, image=image, denoising_start=0.8, num_inference_steps=steps)

    pipe, params = small
    settings: dict[str, Any] = {**PROMPT, "steps": steps, "output": "latents", "timestep_spacing": spacing}
    got = pipe.generate(params, **settings, **size, denoising_end=0.8, latents=NOISE)
    assert_close(got, half)
    assert_close(second.generate(its_params, **settings, **scores, image=got.latents, denoising_start=0.8), wanted)
    both: dict[str, Any] = {"refiner": (second, its_params), "refiner_at": 0.8}
    refined = pipe.generate(params, **settings, **size, **scores, **both, latents=NOISE)
    assert_close(refined, wanted)
    assert refined.steps == steps
    stopped = pipe.generate(params, **settings, **size, **both, callback=lambda *_: False)
    assert (stopped.images, stopped.steps) == ([], 1)
    with pytest.raises(jaxl.InputError, match="refiner_at=2"):
        pipe.generate(params, **settings, **size, **{**both, "refiner_at": 2})


@pytest.mark.parametrize("scheduler", ["euler", "ddim"])
def test_three_runs_one_after_another_are_one(small: Any, scheduler: str) -> None:
    pipe, params = small
    settings: dict[str, Any] = {**PROMPT, "steps": 10, "scheduler": scheduler, "width": 64, "height": 64}
    whole = pipe.generate(params, **settings, output="latents").latents
    first = pipe.generate(params, **settings, denoising_end=0.3, output="latents").latents
    second = pipe.generate(params, **settings, image=first, denoising_start=0.3, denoising_end=0.7, output="latents")
    third = pipe.generate(params, **settings, image=second.latents, denoising_start=0.7, output="latents").latents
    np.testing.assert_allclose(third, whole, atol=1e-4)


def test_a_run_that_goes_on_draws_other_noise(small: Any) -> None:
    pipe, _ = small
    settings: dict[str, Any] = {"prompt": "a cat", "steps": 10, "scheduler": "euler_a", "width": 64, "height": 64}
    first = pipe.plan(**settings, denoising_end=0.5)
    second = pipe.plan(**settings, image=np.zeros((1, 8, 8, 4), np.float32), denoising_start=0.5)
    numbers = [set(range(plan.first, plan.first + plan.count)) for plan in (first, second)]
    assert not numbers[0] & numbers[1]
    assert first.count + second.count == 10
