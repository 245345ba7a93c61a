"""Pictures with ControlNets and their kin beside diffusers' pipelines: one, two, windows, pictures and masks."""

import copy
import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from controlnets import in_original_names
from PIL import Image
from pipelines import as_pipeline, assert_close, latents_of, noise_and_mean
from safetensors.torch import save_file
from torch_weights import randomize

from jaxl import Control
from jaxl.errors import InputError

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


@pytest.fixture(scope="module")
def adapters(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two T2I-Adapters of diffusers with random weights, which the pipeline knows as "sketch" and "pose"."""
    pipe, found = small[0], []
    for seed, name in enumerate(("sketch", "pose")):
        network: Any = diffusers.T2IAdapter(3, [*pipe.model.unet.channels], 2, 16, "full_adapter_xl")
        found.append(randomize(network, seed))
        path = tmp_path_factory.mktemp("adapter") / name
        network.save_pretrained(path)
        pipe.add_control(name, path)
    yield found
    for name in ("sketch", "pose"):
        pipe.remove_control(name)


@pytest.mark.parametrize("factor", [1.0, 0.52])
def test_t2i_adapter(small: Any, adapters: Any, reference: Any, factor: float) -> None:
    made = as_pipeline(diffusers.StableDiffusionXLAdapterPipeline, reference, adapter=adapters[0])
    wanted = latents_of(
        made,
        **CALL,
        image=torch_picture(FIRST),
        num_inference_steps=6,
        latents=torch_noise(),
        adapter_conditioning_scale=0.8,
        adapter_conditioning_factor=factor,
    )
    how: Any = {"steps": 6, "scheduler": "euler", "latents": NOISE, "output": "latents"}
    controls = [Control("sketch", FIRST, 0.8, end=factor)]
    assert_close(small[0].generate(small[1], **CALL, **how, controls=controls), wanted)


def test_two_t2i_adapters(small: Any, adapters: Any, reference: Any) -> None:
    made = as_pipeline(diffusers.StableDiffusionXLAdapterPipeline, reference, adapter=diffusers.MultiAdapter(adapters))
    wanted = latents_of(
        made,
        **CALL,
        image=[torch_picture(FIRST), torch_picture(SECOND)],
        num_inference_steps=4,
        latents=torch_noise(),
        adapter_conditioning_scale=[0.8, 0.4],
    )
    how: Any = {"steps": 4, "scheduler": "euler", "latents": NOISE, "output": "latents"}
    controls = [Control("sketch", FIRST, 0.8), Control("pose", SECOND, 0.4)]
    assert_close(small[0].generate(small[1], **CALL, **how, controls=controls), wanted)


def test_control_lora(small: Any, pipe: Any, networks: Any, reference: Any, tmp_path: Path) -> None:
    """The ControlNet that it makes is diffusers', with the U-Net's weights and what the factors make."""
    generator = torch.Generator().manual_seed(0)
    light: dict[str, torch.Tensor] = {"lora_controlnet": torch.zeros(0)}
    network = copy.deepcopy(networks[0][0])
    own, base = network.state_dict(), reference.unet.state_dict()
    names = in_original_names({key: np.asarray(key) for key in own}, pipe.model)
    for name, key in ((name.removeprefix("control_model."), str(key)) for name, key in names.items()):
        if key in base and own[key].ndim > 1:
            weight = base[key]
            up = 0.1 * torch.randn(len(weight), 4, *[1] * (weight.ndim - 2), generator=generator)
            down = 0.1 * torch.randn(4, *weight.shape[1:], generator=generator)
            stem = name.removesuffix(".weight")
            light |= {f"{stem}.up": up, f"{stem}.down": down}
            own[key] = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        else:
            light[name] = own[key].contiguous()
    network.load_state_dict(own)
    save_file(light, tmp_path / "light.safetensors")
    pipe.add_control("light", tmp_path / "light.safetensors")
    made = as_pipeline(diffusers.StableDiffusionXLControlNetPipeline, reference, controlnet=network)
    wanted = latents_of(made, **CALL, image=torch_picture(FIRST), num_inference_steps=6, latents=torch_noise())
    how: Any = {"steps": 6, "scheduler": "euler", "latents": NOISE, "output": "latents"}
    got = pipe.generate(small[1], **CALL, **how, controls=[Control("light", FIRST)])
    pipe.remove_control("light")
    assert_close(got, wanted)


@pytest.fixture(scope="module")
def union(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A union of diffusers with random weights, which the pipeline knows too."""
    pipe = small[0]
    taken = inspect.signature(diffusers.ControlNetUnionModel).parameters
    config = {name: value for name, value in pipe.checkpoint.configs["unet"].items() if name in taken}
    widths = {"num_trans_channel": pipe.model.unet.channels[0], "num_proj_channel": pipe.model.unet.channels[0]}
    network: Any = diffusers.ControlNetUnionModel(
        **config, **widths, num_trans_head=4, conditioning_embedding_out_channels=(8, 16, 16, 24)
    )
    randomize(network, 3)
    path = tmp_path_factory.mktemp("union") / "union"
    network.save_pretrained(path)
    pipe.add_control("union", path)
    yield network
    pipe.remove_control("union")


@pytest.mark.parametrize(
    ("modes", "strengths", "end"),
    # outside of the window diffusers' network still adds something where there are several kinds
    [(["depth"], [0.7], 0.7), (["canny", "openpose"], [0.5, 1.2], 1.0)],
    ids=["one", "two"],
)
def test_union(small: Any, union: Any, reference: Any, modes: Any, strengths: Any, end: float) -> None:
    """One image at a time, as diffusers' network looks at the neighbours in a batch."""
    pictures = [FIRST, SECOND][: len(modes)]
    controls = [
        Control("union", picture, strength, end=end, mode=mode)
        for mode, picture, strength in zip(modes, pictures, strengths, strict=True)
    ]
    made = as_pipeline(diffusers.StableDiffusionXLControlNetUnionPipeline, reference, controlnet=union)
    wanted = latents_of(
        made,
        **CALL,
        control_image=[torch_picture(picture) for picture in pictures],
        control_mode=[control.kind for control in controls],
        controlnet_conditioning_scale=strengths,
        control_guidance_end=end,
        num_inference_steps=6,
        latents=torch_noise(),
    )
    how: Any = {"steps": 6, "scheduler": "euler", "latents": NOISE, "output": "latents"}
    assert_close(small[0].generate(small[1], **CALL, **how, controls=controls), wanted)


def test_an_image_of_a_union_does_not_depend_on_its_neighbours(small: Any, union: Any) -> None:
    pipe, params = small
    one = [Control("union", FIRST, mode="depth")]
    two = [Control("union", SECOND, mode="canny"), Control("union", FIRST, 0.5, mode="normal")]
    how: Any = {"steps": 2, "output": "latents", "height": 64, "width": 64}
    among = pipe.generate(params, ["a cat"] * 3, seed=[1, 1, 1], controls=[one, two, []], **how).latents
    for own, got in zip((one, two, []), among, strict=True):
        alone = pipe.generate(params, "a cat", seed=1, controls=own, **how).latents[0]
        np.testing.assert_allclose(got, alone, rtol=2e-4, atol=2e-4)
    assert np.abs(among[0] - among[1]).max() > 0.05


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (Control("union", FIRST), "mode=None: 'union' takes pictures of several kinds; give one of openpose, depth"),
        (Control("union", FIRST, mode="tile"), "mode='tile': 'union' takes pictures of several kinds"),
        (Control("edges", FIRST, mode="depth"), "mode='depth': 'edges' is for pictures of one kind"),
    ],
)
def test_modes_that_cannot_be(pipe: Any, union: Any, control: Control, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.plan("a cat", controls=[control])
