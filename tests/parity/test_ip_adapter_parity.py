"""IP-Adapters beside diffusers: the image encoder and the projections, and whole pipelines."""

from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.image_processor import IPAdapterMaskProcessor
from ip_adapters import ENCODER, image_encoder, nested, write
from PIL import Image
from pipelines import as_pipeline, assert_close, latents_of, noise_and_mean
from safetensors.numpy import load_file
from torch_weights import randomize, relative_error, shape_tree, tree

from jaxl import Control, ImagePrompt
from jaxl.call.image_prompts import to_pixels
from jaxl.config import VisionConfig
from jaxl.nn.clip_vision import clip_vision, clip_vision_shapes

TOLERANCE = 2e-5
CALL: dict[str, Any] = {
    "prompt": "a rocket",
    "negative_prompt": "a cat",
    "guidance_scale": 4.0,
    "height": 64,
    "width": 64,
}
RNG = np.random.default_rng(7)
NOISE = RNG.standard_normal((1, 8, 8, 4), np.float32)
ONE, TWO, START = (Image.fromarray(RNG.integers(0, 256, (28, 28, 3), np.uint8)) for _ in range(3))
LEFT = np.zeros((64, 64), np.uint8)
LEFT[:, :40] = 255


def test_the_image_encoder() -> None:
    reference = image_encoder()
    cfg = VisionConfig.from_json(reference.config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]})
    params = tree(reference)
    assert shape_tree(params) == shape_tree(clip_vision_shapes(cfg))
    pixels = RNG.standard_normal((2, 28, 28, 3), np.float32)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    embedding, hidden = jax.jit(lambda params, pixels: clip_vision(params, cfg, pixels))(params, pixels)
    assert relative_error(embedding, wanted.image_embeds) < TOLERANCE
    assert relative_error(hidden, wanted.hidden_states[-2]) < TOLERANCE


@pytest.mark.parametrize("size", [(224, 224), (300, 500), (641, 97), (30, 40)])
def test_pictures_for_it(size: tuple[int, int]) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), np.uint8))
    wanted = transformers.CLIPImageProcessor()(picture, return_tensors="np").pixel_values
    cfg = VisionConfig.from_json(ENCODER | {"image_size": 224, "patch_size": 14})
    np.testing.assert_allclose(to_pixels(picture, cfg), wanted.transpose(0, 2, 3, 1), atol=1e-5)


@pytest.fixture(scope="module")
def pipe(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    own = small[0]
    for name, file in write(tmp_path_factory.mktemp("ip"), own.model.unet).items():
        own.add_ip_adapter(name, file)
    yield own
    for name in [*own.ip_adapters]:
        own.remove_ip_adapter(name)


def reference(small: Any, pipe: Any, names: list[str], kind: Any = None, **parts: Any) -> Any:
    """A pipeline of diffusers with these adapters of ours."""
    plain = diffusers.StableDiffusionXLPipeline.from_pretrained(small[0].checkpoint.source, torch_dtype=torch.float32)
    processor = transformers.CLIPImageProcessor(size=28, crop_size=28)
    own = {"image_encoder": image_encoder(), "feature_extractor": processor}
    made = as_pipeline(kind or diffusers.StableDiffusionXLPipeline, plain, **own, **parts)
    files = [nested(load_file(pipe.ip_adapters[name].source)) for name in names]
    made.load_ip_adapter(files, subfolder=[""] * len(files), weight_name=[""] * len(files))
    return made


BLOCKS = {"up": {"block_0": [0.0, 1.0]}, "mid": 0.5}


@pytest.mark.parametrize(
    ("prompts", "scale", "images"),
    [
        ([ImagePrompt("plus", [ONE, TWO], blocks=BLOCKS)], BLOCKS, [[ONE, TWO]]),
        ([ImagePrompt("plain", ONE, 0.4), ImagePrompt("plus", TWO)], [0.4, 1.0], [ONE, TWO]),
    ],
    ids=["two pictures for some blocks", "two adapters"],
)
def test_from_texts(small: Any, pipe: Any, prompts: Any, scale: Any, images: Any) -> None:
    made = reference(small, pipe, [prompt.name for prompt in prompts])
    made.set_ip_adapter_scale(scale)
    noise = torch.from_numpy(NOISE).permute(0, 3, 1, 2)
    wanted = latents_of(made, **CALL, ip_adapter_image=images, num_inference_steps=4, latents=noise)
    how: Any = {"steps": 4, "scheduler": "euler", "latents": NOISE, "output": "latents"}
    got = pipe.generate(small[1], **CALL, **how, image_prompts=prompts)
    assert_close(got, wanted)
    assert relative_error(pipe.generate(small[1], **CALL, **how).latents, wanted) > 0.01


def test_with_masks(small: Any, pipe: Any) -> None:
    """Each picture where its mask is white; diffusers has a list of both for one adapter."""
    made = reference(small, pipe, ["plus"])
    made.set_ip_adapter_scale([[0.6, 0.9]])
    right = 255 - LEFT
    masks = IPAdapterMaskProcessor().preprocess([Image.fromarray(LEFT), Image.fromarray(right)], height=64, width=64)
    masks = [masks.reshape(1, masks.shape[0], masks.shape[2], masks.shape[3])]
    wanted = latents_of(
        made,
        **CALL,
        ip_adapter_image=[[ONE, TWO]],
        cross_attention_kwargs={"ip_adapter_masks": masks},
        num_inference_steps=4,
        latents=torch.from_numpy(NOISE).permute(0, 3, 1, 2),
    )
    prompts = [ImagePrompt("plus", ONE, 0.6, mask=LEFT), ImagePrompt("plus", TWO, 0.9, mask=right)]
    how: Any = {"steps": 4, "scheduler": "euler", "latents": NOISE, "output": "latents"}
    assert_close(pipe.generate(small[1], **CALL, **how, image_prompts=prompts), wanted)


def test_from_a_picture_with_a_controlnet_in_part_of_the_steps(
    small: Any, pipe: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        small[0].checkpoint.source, subfolder="unet", torch_dtype=torch.float32
    )
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 24))
    randomize(network, 1)
    path = tmp_path_factory.mktemp("controlnet")
    network.save_pretrained(path)
    pipe.add_control("edges", path)
    kind = diffusers.StableDiffusionXLControlNetImg2ImgPipeline
    made = reference(small, pipe, ["plain"], kind, controlnet=network)
    picture, lines = START.resize((64, 64)), TWO.resize((64, 64))
    off_after = 2  # of four steps

    def turned_off(own: Any, step: int, *_: Any) -> dict[str, Any]:
        if step + 1 == off_after:
            own.set_ip_adapter_scale(0.0)
        return {}

    with noise_and_mean(NOISE):
        wanted = latents_of(
            made,
            **CALL,
            image=picture,
            control_image=lines,
            ip_adapter_image=ONE,
            controlnet_conditioning_scale=0.8,
            num_inference_steps=8,
            strength=0.5,
            callback_on_step_end=turned_off,
        )
    got = pipe.generate(
        small[1],
        **CALL,
        steps=8,
        scheduler="euler",
        latents=NOISE,
        output="latents",
        image=picture,
        strength=0.5,
        controls=[Control("edges", lines, 0.8)],
        image_prompts=[ImagePrompt("plain", ONE, end=0.5)],
    )
    pipe.remove_control("edges")
    assert_close(got, wanted)
