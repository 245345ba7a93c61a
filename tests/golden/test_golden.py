"""`tiny` against what diffusers computed for it once (golden.npz, made by training/tiny/golden.py)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from torch_weights import relative_error

import jaxl
from jaxl.diffusion.tables import build_table
from jaxl.nn.vae import encode
from jaxl.run.programs import ENCODE_TEXT

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tiny(optimised: None) -> tuple[Any, Any]:
    """The embedded model, its programs compiled as users have them: (pipe, params)."""
    return jaxl.from_pretrained("tiny", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        return dict(file)


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -3, -1)


def test_token_ids(tiny: Any, golden: Golden) -> None:
    pipe, _ = tiny
    prompts = [str(p) for p in golden["prompts"]]
    np.testing.assert_array_equal(pipe.tokenizers["text_encoder"].encode(prompts).ids, golden["prompt_ids"])
    np.testing.assert_array_equal(pipe.tokenizers["text_encoder_2"].encode(prompts).ids, golden["prompt_ids_2"])


def test_text_embeddings(tiny: Any, golden: Golden) -> None:
    pipe, params = tiny
    encode_text = pipe.programs.get(ENCODE_TEXT)
    encoders = {name: params[name] for name in pipe.tokenizers}
    texts = [*golden["prompts"], str(golden["negative_prompt"])]
    embeds = [*golden["prompt_embeds"], golden["negative_prompt_embeds"][0]]
    pooled = [*golden["pooled"], golden["negative_pooled"][0]]
    for text, wanted_embeds, wanted_pooled in zip(texts, embeds, pooled, strict=True):
        ids = {name: tokenizer.encode([str(text)]).ids for name, tokenizer in pipe.tokenizers.items()}
        weights = {name: np.ones(rows.shape, np.float32) for name, rows in ids.items()}
        got = encode_text(encoders, ids, weights, np.int32(0), pipe.programs.nothing_replaced)
        assert relative_error(got.prompt_embeds[0], wanted_embeds) < 2e-5
        assert relative_error(got.pooled[0], wanted_pooled) < 2e-5


def test_one_network_call(tiny: Any, golden: Golden) -> None:
    """A step to the end goes as far as the network says; the least guidance, so that the next test has its program."""
    pipe, params = tiny
    table = build_table(pipe.model.scheduler, None, "euler", timesteps=[501])
    sigma = table.sigmas[0]
    begun = nhwc(golden["noise"]) * np.hypot(1, sigma)  # which the network sees with a variance of 1
    ended = pipe.generate(
        params,
        [str(p) for p in golden["prompts"]],
        negative_prompt=str(golden["negative_prompt"]),
        timesteps=[501],
        scheduler="euler",
        guidance_scale=1 + 2**-20,
        latents=begun / table.init_scale,
        output="latents",
    ).latents
    assert relative_error((begun - ended) / sigma, nhwc(golden["unet_at_501"])) < 2e-5


def test_every_step_and_the_image(tiny: Any, golden: Golden) -> None:
    pipe, params = tiny
    trace: list[np.ndarray] = []
    previews: list[np.ndarray] = []
    result = pipe.generate(
        params,
        [str(p) for p in golden["prompts"]],
        negative_prompt=str(golden["negative_prompt"]),
        steps=int(golden["steps"]),
        guidance_scale=float(golden["guidance"]),
        latents=nhwc(golden["noise"]),
        output="numpy",
        callback=lambda step, total, latents: trace.append(latents),
        preview=lambda step, total, pictures: previews.append(pictures),
    )
    assert len(trace) == len(golden["latents"]) == result.steps
    for got, wanted in zip(trace, golden["latents"], strict=True):
        assert relative_error(got, nhwc(wanted)) < 2e-4
    assert relative_error(result.latents, nhwc(golden["final_latents"])) < 2e-4
    wanted = np.clip(nhwc(golden["image"]) / 2 + 0.5, 0, 1)
    assert np.mean(np.abs(result.images - wanted) <= 1 / 255) > 0.999
    assert [each.shape for each in previews] == [(4, 32, 32, 3)] * result.steps
    small = np.asarray(result.images).reshape(4, 32, 8, 32, 8, 3).mean((2, 4))
    errors = [np.abs(each / 255 - small).mean((1, 2, 3)) for each in previews]
    assert (errors[-1] < errors[0]).all(), "they come to be the images"


def test_the_picture_grid(tiny: Any) -> None:
    """The first row of golden.png, from PyTorch's noise: the same pictures to the last grey level or two."""
    pipe, params = tiny
    captions = [
        "a red apple on a blue background, flat style",
        "a dolphin and a party popper on a yellow background, noto style",
        "a llama on a green background, noto style",
        "a castle on a pink background, flat style",
    ]
    noise = [torch.randn((4, 32, 32), generator=torch.Generator().manual_seed(seed)).numpy() for seed in range(4)]
    result = pipe.generate(params, captions, steps=20, guidance_scale=5.0, latents=nhwc(np.stack(noise)))
    with Image.open(Path(__file__).with_name("golden.png")) as grid:
        wanted = np.asarray(grid.convert("RGB"), np.int16)[:256]
    got = np.concatenate([np.asarray(image, np.int16) for image in result.images], axis=1)
    assert np.mean(np.abs(got - wanted) <= 1) > 0.999
    assert np.abs(got - wanted).max() <= 4


def test_vae_encoder(tiny: Any, golden: Golden) -> None:
    pipe, params = tiny
    mean, _ = jax.jit(encode, static_argnums=1)(params["vae"], pipe.model.vae, np.clip(nhwc(golden["image"]), -1, 1))
    assert relative_error(mean, nhwc(golden["vae_mean_of_image"])) < 2e-5
