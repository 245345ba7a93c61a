"""Every kind of guidance, beside diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FEW, LCM, THIN
from pipelines import as_pipeline, assert_close, latents_of, noise_and_mean, random_pipeline

import jaxl

SIZE = 64
STEPS = 5
TEXTS: dict[str, Any] = {"prompt": "a rocket on a purple background", "negative_prompt": "a cat"}
SHAPE: dict[str, Any] = {"width": SIZE, "height": SIZE}
NOISE = np.random.default_rng(1).standard_normal((1, SIZE // 8, SIZE // 8, 4), np.float32)
TORCH_NOISE = torch.from_numpy(NOISE).permute(0, 3, 1, 2)


def compare(small: Any, theirs: Any, ours: dict[str, Any], **their_settings: Any) -> None:
    pipe, params = small
    wanted = latents_of(theirs, **TEXTS, **SHAPE, **their_settings, num_inference_steps=STEPS, latents=TORCH_NOISE)
    assert_close(pipe.generate(params, **TEXTS, **SHAPE, **ours, steps=STEPS, latents=NOISE), wanted)


def test_rescaled_guidance(small: Any, reference: Any) -> None:
    settings = {"guidance_scale": 9.0, "guidance_rescale": 0.7}
    compare(small, as_pipeline(diffusers.StableDiffusionXLPipeline, reference), settings, **settings)


@pytest.mark.parametrize("pag", [{"pag_scale": 3.0}, {"pag_scale": 3.0, "pag_adaptive_scale": 0.005}])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_perturbed_attention(small: Any, reference: Any, guidance_scale: float, pag: dict[str, float]) -> None:
    # a copy of the U-Net, because the pipeline changes its attention
    unet = diffusers.UNet2DConditionModel.from_config(reference.unet.config)
    unet.load_state_dict(reference.unet.state_dict())
    theirs = as_pipeline(diffusers.StableDiffusionXLPAGPipeline, reference, unet=unet, pag_applied_layers="mid")
    settings = {"guidance_scale": guidance_scale, **pag}
    compare(small, theirs, settings, **settings)


def test_freeu(small: Any, reference: Any) -> None:
    theirs = as_pipeline(diffusers.StableDiffusionXLPipeline, reference)
    theirs.enable_freeu(s1=0.6, s2=0.4, b1=1.1, b2=1.2)
    try:
        compare(small, theirs, {"guidance_scale": 5.0, "freeu": (0.6, 0.4, 1.1, 1.2)}, guidance_scale=5.0)
    finally:
        theirs.disable_freeu()


@pytest.mark.parametrize(
    ("ours", "scales"),
    [
        ({"guidance_scale": [[7.0, 5.0, 3.0, 2.0, 1.5]]}, [7.0, 5.0, 3.0, 2.0, 1.5]),
        ({"guidance_scale": 6.0, "guidance_interval": (0.2, 0.8)}, [1.0, 6.0, 6.0, 6.0, 1.0]),
    ],
)
def test_guidance_that_changes(small: Any, reference: Any, ours: dict[str, Any], scales: list[float]) -> None:
    theirs = as_pipeline(diffusers.StableDiffusionXLPipeline, reference)

    class Scales(type(theirs)):
        """The pipeline with a scale of each step; both branches are computed throughout."""

        do_classifier_free_guidance = True
        guidance_scale = property(lambda self: scales[min(self.done, STEPS - 1)])
        done = 0

    theirs.__class__ = Scales

    def count(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe.done = step + 1
        return {}

    compare(small, theirs, ours, callback_on_step_end=count)


def test_a_network_distilled_with_guidance(tmp_path: Path) -> None:
    whole = random_pipeline(LCM | FEW, {})
    whole.save_pretrained(tmp_path / "model")
    ours = jaxl.from_pretrained(tmp_path / "model", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    assert ours[0].preset.name == "lcm"
    theirs = as_pipeline(diffusers.StableDiffusionXLPipeline, whole, "lcm")
    pipe, params = ours
    # the only step adds no noise
    with noise_and_mean(NOISE):
        wanted = latents_of(theirs, **TEXTS, **SHAPE, guidance_scale=8.0, num_inference_steps=1, latents=TORCH_NOISE)
    plan = pipe.plan(**TEXTS, **SHAPE)
    assert (plan.steps, plan.scheduler, plan.bucket.guided) == (4, "lcm", False)
    assert_close(pipe.generate(params, **TEXTS, **SHAPE, steps=1, latents=NOISE), wanted)


def test_a_model_with_edm_noise(tmp_path: Path) -> None:
    """Playground v2.5's way: EDM noise, and latents with a mean and a deviation of their own."""
    whole = random_pipeline(THIN["base"], {})
    whole.scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0, sigma_data=0.5, sigma_min=0.002)
    statistics = {"latents_mean": [-1.6, 1.1, 3.2, -1.2], "latents_std": [8.4, 5.9, 5.8, 5.1], "scaling_factor": 0.5}
    whole.vae.register_to_config(**statistics)
    whole.set_progress_bar_config(disable=True)
    whole.save_pretrained(tmp_path / "model")
    pipe, params = jaxl.from_pretrained(tmp_path / "model", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    assert pipe.preset.name == "playground"
    settings: dict[str, Any] = {**TEXTS, **SHAPE, "guidance_scale": 3.0}
    wanted = latents_of(whole, **settings, num_inference_steps=STEPS, latents=TORCH_NOISE)
    got = pipe.generate(params, **settings, steps=STEPS, latents=NOISE, output="numpy")
    assert_close(got, wanted)
    with torch.no_grad():
        images = whole(**settings, num_inference_steps=STEPS, latents=TORCH_NOISE, output_type="np").images
    assert np.mean(np.abs(got.images - images) <= 1 / 255) > 0.999
