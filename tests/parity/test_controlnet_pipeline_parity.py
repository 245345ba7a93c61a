"""Pictures with ControlNets beside diffusers' pipelines: one and two, windows, guess mode, from pictures and masks."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import as_pipeline, assert_close, latents_of, noise_and_mean
from torch_weights import randomize

from jaxl import Control

CALL: dict[str, Any] = {
    "prompt": "a rocket",
    "negative_prompt": "a cat",
    "guidance_scale": 4.0,
    "height": 64,
    "width": 64,
}
RNG = np.random.default_rng(5)
NOISE = RNG.standard_normal((1, 8, 8, 4), np.float32)
FIRST, SECOND, START = (RNG.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(3))
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 8:40] = 255


@pytest.fixture(scope="module")
def networks(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two networks of diffusers for the small model, and the folders that they are in."""
    folder = small[0].checkpoint.source
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    found = []
    for seed in (1, 2):
        network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 24))
        randomize(network, seed)
        path = tmp_path_factory.mktemp("controlnet") / str(seed)
        network.save_pretrained(path)
        found.append((network, path))
    return found


@pytest.fixture(scope="module")
def pipe(small: Any, networks: Any) -> Any:
    own = small[0]
    for name, (_, path) in zip(("edges", "depth"), networks, strict=True):
        own.add_control(name, path)
    yield own
    own.remove_control("edges")
    own.remove_control("depth")


@pytest.fixture(scope="module")
def reference(small: Any) -> Any:
    return diffusers.StableDiffusionXLPipeline.from_pretrained(small[0].checkpoint.source, torch_dtype=torch.float32)


def torch_noise() -> Any:
    return torch.from_numpy(NOISE).permute(0, 3, 1, 2)


def torch_picture(picture: np.ndarray) -> Any:
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"strength": 0.6}, {"controlnet_conditioning_scale": 0.6}),
        ({"weighting": "guess"}, {"guess_mode": True}),
        ({"start": 0.01}, {"control_guidance_start": 0.01}),
        ({"start": 0.25, "end": 0.5}, {"control_guidance_start": 0.25, "control_guidance_end": 0.5}),
        ({"end": 0.52}, {"control_guidance_end": 0.52}),
    ],
)
def test_one(small: Any, pipe: Any, networks: Any, reference: Any, ours: Any, theirs: Any) -> None:
    made = as_pipeline(diffusers.StableDiffusionXLControlNetPipeline, reference, controlnet=networks[0][0])
    wanted = latents_of(
        made, **CALL, image=torch_picture(FIRST), num_inference_steps=6, latents=torch_noise(), **theirs
    )
    controls = [Control("edges", FIRST, **ours)]
    got = pipe.generate(
        small[1], **CALL, steps=6, scheduler="euler", latents=NOISE, output="latents", controls=controls
    )
    assert_close(got, wanted)


def test_two_in_the_steps_of_heun(small: Any, pipe: Any, networks: Any, reference: Any) -> None:
    kind = diffusers.StableDiffusionXLControlNetPipeline
    made = as_pipeline(kind, reference, "heun", controlnet=[network for network, _ in networks])
    wanted = latents_of(
        made,
        **CALL,
        image=[torch_picture(FIRST), torch_picture(SECOND)],
        num_inference_steps=4,
        latents=torch_noise(),
        controlnet_conditioning_scale=[0.5, 1.2],
        control_guidance_start=[0.0, 0.3],
        control_guidance_end=[0.6, 1.0],
    )
    controls = [Control("edges", FIRST, 0.5, end=0.6), Control("depth", SECOND, 1.2, start=0.3)]
    got = pipe.generate(small[1], **CALL, steps=4, scheduler="heun", latents=NOISE, output="latents", controls=controls)
    assert_close(got, wanted)


@pytest.mark.parametrize(("mask", "end"), [(None, 0.8), (MASK, 1.0)])
def test_from_a_picture(small: Any, pipe: Any, networks: Any, reference: Any, mask: Any, end: float) -> None:
    kind = diffusers.StableDiffusionXLControlNetImg2ImgPipeline
    masked = {} if mask is None else {"mask_image": Image.fromarray(mask)}
    if masked:
        kind = diffusers.StableDiffusionXLControlNetInpaintPipeline
    made = as_pipeline(kind, reference, controlnet=networks[0][0])
    with noise_and_mean(NOISE):
        wanted = latents_of(
            made,
            **CALL,
            image=Image.fromarray(START),
            control_image=torch_picture(FIRST),
            num_inference_steps=8,
            strength=0.5,
            controlnet_conditioning_scale=1.0,
            control_guidance_end=end,
            **masked,
        )
    got = pipe.generate(
        small[1],
        **CALL,
        steps=8,
        scheduler="euler",
        latents=NOISE,
        output="latents",
        image=START,
        strength=0.5,
        controls=[Control("edges", FIRST, end=end)],
        **({} if mask is None else {"mask": mask}),
    )
    assert_close(got, wanted)
