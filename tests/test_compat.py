"""The drop-in for the removed Flax pipeline: its interface, its conventions, and its faults gone."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from torch_weights import relative_error
from xla_flags import xla_flags

import jaxl
from article import check_pictures
from jaxl.compat import FlaxStableDiffusionXLPipeline

PROGRAM = Path(__file__).parents[1] / "examples" / "article_ahead_of_time.py"
PROMPT, NEGATIVE = "a red apple on a blue background, flat style", "a cat"


@pytest.fixture(scope="module")
def flax_like(small: Any) -> tuple[Any, Any]:
    return FlaxStableDiffusionXLPipeline.from_pretrained(small[0].checkpoint.source, split_head_dim=True)


def nhwc(latents: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(latents), 1, -1)


def test_interface(flax_like: Any) -> None:
    pipe, params = flax_like
    assert set(params) == {"unet", "vae", "text_encoder", "text_encoder_2", "scheduler"}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    ids = pipe.prepare_inputs([PROMPT, NEGATIVE])
    assert ids.shape == (2, 2, 77)
    assert {"unet", "vae", "tokenizer", "tokenizer_2", "scheduler"} <= set(pipe.components)
    pipe.set_progress_bar_config(disable=True)
    images = pipe.numpy_to_pil(np.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3))
    assert [image.size for image in images] == [(8, 8)] * 2


def test_same_picture_as_the_new_interface(flax_like: Any, small: Any) -> None:
    """And therefore as diffusers on PyTorch: latents of the same noise, negative prompt and size agree."""
    pipe, params = flax_like
    new, new_params = small
    noise = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    ids, neg_ids = pipe.prepare_inputs([PROMPT, "a dog"]), pipe.prepare_inputs([NEGATIVE] * 2)
    key = jax.random.PRNGKey(0)
    old = pipe(ids, params, key, 3, 5.0, latents=noise, neg_prompt_ids=neg_ids, output_type="latent").images
    (images,) = pipe(ids, params, key, 3, 5.0, latents=noise, neg_prompt_ids=neg_ids, return_dict=False)
    settings: dict[str, Any] = {"negative_prompt": NEGATIVE, "steps": 3, "output": "numpy"}
    for i, prompt in enumerate((PROMPT, "a dog")):
        wanted = new.generate(new_params, prompt, latents=nhwc(noise[i : i + 1]), **settings)
        assert relative_error(nhwc(old)[i], wanted.latents[0]) < 1e-5
        assert np.abs(np.asarray(images)[i] - wanted.images[0]).max() < 1 / 255
    pictures = pipe(ids, params, key, 3, 5.0, latents=noise, neg_prompt_ids=neg_ids, output_type="pil").images
    assert [type(picture) for picture in pictures] == [Image.Image] * 2


def test_no_negative_ids_mean_zeros(flax_like: Any) -> None:
    pipe, params = flax_like
    ids, key = pipe.prepare_inputs([PROMPT] * 2), jax.random.key(1)
    zeros = pipe(ids, params, key, 2, output_type="latent").images
    empty = pipe(ids, params, key, 2, neg_prompt_ids=pipe.prepare_inputs([""] * 2), output_type="latent").images
    assert np.abs(np.asarray(zeros) - np.asarray(empty)).max() > 1e-3


def test_noise_is_the_old_one(flax_like: Any) -> None:
    """Without `latents`, NCHW normals of the key: old seeds keep their pictures' composition."""
    pipe, params = flax_like
    ids, key = pipe.prepare_inputs([PROMPT, NEGATIVE]), jax.random.PRNGKey(5)
    call = {"neg_prompt_ids": pipe.prepare_inputs([NEGATIVE] * 2), "output_type": "latent"}
    drawn = pipe(ids, params, key, 2, **call).images
    given = jax.random.normal(key, (2, 4, 8, 8), jnp.float32)
    again = pipe(ids, params, key, 2, latents=given, **call).images
    np.testing.assert_allclose(drawn, again, atol=1e-4)


def test_nothing_recompiles_and_guidance_is_per_image(flax_like: Any, compilations: Any) -> None:
    pipe, params = flax_like
    ids, key = pipe.prepare_inputs([PROMPT, PROMPT]), jax.random.PRNGKey(0)
    noise = jnp.tile(jax.random.normal(key, (1, 4, 8, 8)), (2, 1, 1, 1))
    call = {"neg_prompt_ids": pipe.prepare_inputs([NEGATIVE] * 2), "latents": noise, "output_type": "latent"}
    both = np.asarray(pipe(ids, params, key, 2, guidance_scale=np.array([3.0, 9.0]), **call).images)
    with compilations() as seen:
        low = np.asarray(pipe(ids, params, key, 2, guidance_scale=3, **call).images)
        pipe(ids, params, jax.random.PRNGKey(4), 5, guidance_scale=9.5, **call)
    assert seen == []
    np.testing.assert_allclose(both[0], low[0], atol=1e-4)
    assert np.abs(both[1] - low[1]).max() > 0.01


def test_mapped_over_devices(flax_like: Any) -> None:
    """`jit=True`: replicated parameters, a key each; integer guidance, a column of guidance, and bf16 all work."""
    pipe, params = flax_like
    state = params["scheduler"]
    coarse = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16), {k: v for k, v in params.items() if k != "scheduler"})
    ids, neg_ids = pipe.prepare_inputs(PROMPT), pipe.prepare_inputs(NEGATIVE)
    n = 2
    keys = jax.random.split(jax.random.PRNGKey(33), n)
    on_each = partial(flax.jax_utils.replicate, devices=jax.devices()[:n])
    images = pipe(
        on_each(ids),
        on_each({**coarse, "scheduler": state}),
        keys,
        2,
        guidance_scale=5,
        neg_prompt_ids=on_each(neg_ids),
        jit=True,
    ).images
    assert images.shape == (n, 1, 64, 64, 3)
    assert len({shard.device for shard in images.addressable_shards}) == n
    alone = pipe(ids, coarse, keys[1], 2, guidance_scale=jnp.array([5.0]), neg_prompt_ids=neg_ids).images
    assert np.abs(np.asarray(images[1]) - np.asarray(alone)).mean() < 1 / 255
    assert np.abs(np.asarray(images[1]) - np.asarray(images[0])).mean() > 1 / 255


def test_refusals(flax_like: Any) -> None:
    pipe, params = flax_like
    ids, key = pipe.prepare_inputs(PROMPT), jax.random.PRNGKey(0)
    for bad, message in [
        ({"height": 250}, "height=250"),
        ({"num_inference_steps": 0}, "steps=0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale="),
        ({"latents": np.zeros((1, 8, 8, 4))}, "latents="),
        ({"neg_prompt_ids": np.zeros((1, 77), int)}, "neg_prompt_ids="),
        ({"output_type": "tensor"}, "output_type='tensor'"),
    ]:
        with pytest.raises(jaxl.InputError, match=message):
            pipe(ids, params, key, **bad)
    with pytest.raises(jaxl.InputError, match="prompt_ids="):
        pipe(ids[0], params, key)
    with pytest.raises(jaxl.InputError, match="scheduler='dpm_adaptive'"):
        FlaxStableDiffusionXLPipeline.from_pretrained("tiny", scheduler="dpm_adaptive")
    nan = jax.tree.map(lambda a: jax.device_put(np.full(a.shape, np.nan, a.dtype), a.sharding), params["vae"])
    broken = {**params, "vae": nan}
    two = np.concatenate([ids, ids])
    with pytest.raises(jaxl.NonFiniteError):
        pipe(two, broken, key, 1, latents=np.zeros((2, 4, 8, 8), np.float32), neg_prompt_ids=two)


def test_save_pretrained(flax_like: Any, tmp_path: Path) -> None:
    pipe, params = flax_like
    pipe.save_pretrained(tmp_path / "copy", params)
    _, again = FlaxStableDiffusionXLPipeline.from_pretrained(tmp_path / "copy")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_the_articles_program_ahead_of_time(small: Any, tmp_path: Path) -> None:
    """As a user would run it, on two devices; `tests/examples/test_tpu_notebook.py` runs the other one."""
    environment = os.environ | {"XLA_FLAGS": xla_flags(2)}
    run = subprocess.run(
        [sys.executable, PROGRAM, small[0].checkpoint.source, tmp_path / "images"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    check_pictures(tmp_path / "images", 2)
