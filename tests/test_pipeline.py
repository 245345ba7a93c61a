"""What `generate` promises: exactness in any company, no recompiling, clear refusals."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxl
from jaxl.call.options import LoadOptions
from jaxl.diffusion.schedulers import SOLVERS
from jaxl.loading import open_pipeline
from jaxl.run.programs import ADVANCE, START
from jaxl.weights.source import EMBEDDED

PROMPT = "a rocket on a purple background, noto style"


def test_nothing_but_shapes_compiles(small: Any, compilations: Any) -> None:
    pipe, params = small
    pipe.generate(params, PROMPT, steps=2)
    with compilations() as seen:
        pipe.generate(params, "a llama", seed=9, steps=3, guidance_scale=7.5, negative_prompt="a cat", clip_skip=1)
        for scheduler in SOLVERS:
            # those are for models with another noise schedule, or from a picture to its noise
            if not scheduler.startswith("edm_") and scheduler != "ddim_inverse":
                steps = 4 if scheduler == "pndm" else 2
                pipe.generate(params, "a dog", seed=2**63, steps=steps, scheduler=scheduler, original_size=(512, 300))
        pipe.generate(params, "a dog", latents=np.zeros((1, 8, 8, 4)), steps=1, output="numpy")
        pipe.generate(params, ["a dog"], steps=1, output="latents", callback=lambda *_: None)
    assert seen == []
    with compilations() as seen:
        pipe.programs.get(START, pipe.bucket(1, 64, 72))
    assert seen, "another size must compile, or this test counts nothing"


def test_an_image_does_not_depend_on_its_batch_or_the_devices(small: Any) -> None:
    """The same to rounding alone, in a batch of unlike images, on several devices, and with split parameters."""
    pipe, params = small
    settings: dict[str, Any] = {"steps": 3, "scheduler": "euler_a", "output": "latents"}
    prompts = [PROMPT, "a llama", "a red apple"]
    alone = [
        pipe.generate(params, prompts[i], seed=seed, guidance_scale=scale, **settings).latents[0]
        for i, (seed, scale) in enumerate([(5, 5.0), (2**40, 2.0), (0, 1.0)])
    ]
    several = jaxl.make_mesh(jax.devices()[:4])
    unlike: dict[str, Any] = {"seed": [5, 2**40, 0], "guidance_scale": [5.0, 2.0, 1.0], **settings}
    for mesh, split in ((pipe.mesh, False), (several, False), (several, True)):
        other, its_params = jaxl.from_pretrained(
            pipe.checkpoint.source, dtype=jnp.float32, mesh=mesh, shard_params=split
        )
        if split:
            largest = max(jax.tree.leaves(its_params), key=lambda leaf: leaf.size)
            assert largest.addressable_shards[0].data.size == largest.size // mesh.size
        together = other.generate(its_params, prompts, **unlike).latents
        for got, wanted in zip(together, alone, strict=True):
            np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_seeds(small: Any) -> None:
    pipe, params = small
    counted = pipe.generate(params, PROMPT, seed=41, num_images=3, steps=1, output="latents")
    listed = pipe.generate(params, PROMPT, seed=[43, 42, 41], num_images=3, steps=1, output="latents")
    assert counted.seeds == [41, 42, 43]
    np.testing.assert_allclose(counted.latents, listed.latents[::-1], atol=1e-5)
    assert np.abs(counted.latents[0] - counted.latents[1]).max() > 0.1


def test_outputs_agree(small: Any) -> None:
    pipe, params = small
    images = {kind: pipe.generate(params, PROMPT, seed=3, steps=2, output=kind).images for kind in ("pil", "numpy")}
    assert images["pil"][0].size == (64, 64)
    assert images["numpy"].shape == (1, 64, 64, 3)
    assert images["numpy"].dtype == np.float32
    np.testing.assert_array_equal(np.asarray(images["pil"][0]), np.round(images["numpy"][0] * 255))


def test_callback_sees_every_step_and_stops(small: Any) -> None:
    pipe, params = small
    whole = pipe.generate(params, PROMPT, seed=3, steps=4, output="latents")
    calls: list[tuple[int, int, np.ndarray]] = []

    def stop_at_two(step: int, total: int, latents: np.ndarray) -> bool:
        calls.append((step, total, latents))
        return step < 2

    result = pipe.generate(params, PROMPT, seed=3, steps=4, callback=stop_at_two)
    assert [call[:2] for call in calls] == [(1, 4), (2, 4)]
    assert result.steps == 2
    np.testing.assert_array_equal(calls[1][2], result.latents)
    assert np.abs(result.latents - whole.latents).max() > 0.01
    stepwise = pipe.generate(params, PROMPT, seed=3, steps=4, output="latents", callback=lambda *_: None)
    np.testing.assert_allclose(stepwise.latents, whole.latents, atol=1e-5)


def test_guidance_of_one_is_the_positive_branch(small: Any) -> None:
    """One pass or two, a scale of 1 or less gives the same image, and any other scale another."""
    pipe, params = small
    one = pipe.generate(params, PROMPT, seed=3, steps=2, guidance_scale=1.0, output="latents").latents
    mixed = pipe.generate(
        params, [PROMPT] * 3, seed=3, steps=2, guidance_scale=[0.0, 4.0, 1.0], output="latents"
    ).latents
    np.testing.assert_allclose(mixed[0], one[0], atol=1e-4)
    assert pipe.bucket(1, guided=False).branches == 1


def test_zeros_for_a_negative_prompt_that_is_not_given(small: Any) -> None:
    """SDXL means zeros by no negative prompt, and the empty text by an empty one."""
    from dataclasses import replace

    pipe, params = small
    zeroing = jaxl.Pipeline(pipe.checkpoint, LoadOptions(dtype=jnp.float32, mesh=pipe.mesh))
    zeroing.model = replace(pipe.model, zero_negative=True)
    settings: dict[str, Any] = {"seed": 3, "steps": 2, "output": "latents"}
    empty = pipe.generate(params, PROMPT, **settings).latents
    np.testing.assert_array_equal(zeroing.generate(params, PROMPT, negative_prompt="", **settings).latents, empty)
    assert np.abs(zeroing.generate(params, PROMPT, **settings).latents - empty).max() > 1e-3


def test_every_conditioning_input_matters(small: Any) -> None:
    pipe, params = small
    settings: dict[str, Any] = {"seed": 3, "steps": 2, "output": "latents"}
    plain = pipe.generate(params, PROMPT, **settings).latents
    changes: list[dict[str, Any]] = [
        {"prompt_2": "a cat"},
        {"negative_prompt": "a cat"},
        {"negative_prompt_2": "a cat"},
        {"clip_skip": 1},
        {"original_size": (200, 200)},
        {"crops_coords_top_left": (100, 0)},
        {"target_size": (200, 200)},
        {"negative_original_size": (200, 200)},
        {"negative_crops_coords_top_left": (100, 0)},
        {"negative_target_size": (200, 200)},
    ]
    for change in changes:
        assert np.abs(pipe.generate(params, PROMPT, **settings, **change).latents - plain).max() > 1e-4, change


def test_lost_words_are_reported(small: Any) -> None:
    pipe, params = small
    with pytest.warns(jaxl.TruncationWarning, match="prompt is cut at 77 tokens; lost: .*lastword") as caught:
        pipe.generate(params, "apple " * 100 + "lastword", steps=1, output="latents", prompt_syntax="plain")
    assert caught[0].filename == __file__


def test_a_unet_brings_its_preset(tmp_path: Path) -> None:
    (tmp_path / "sdxl_lightning_2step_unet").symlink_to(EMBEDDED["tiny"] / "unet")
    pipe = open_pipeline("tiny", LoadOptions(unet=tmp_path / "sdxl_lightning_2step_unet"))
    assert (pipe.preset.name, pipe.preset.steps) == ("lightning", 2)
    assert open_pipeline("tiny", LoadOptions(unet="tiny")).preset.name == "sdxl"


def test_broken_numbers_are_an_error_not_an_image(small: Any) -> None:
    pipe, params = small
    broken = {
        **params,
        "unet": {**params["unet"], "conv_out": jax.tree.map(lambda a: a * jnp.nan, params["unet"]["conv_out"])},
    }
    with pytest.raises(jaxl.NonFiniteError, match=r"seed 8.*; unet: conv_out\.[a-z]+ of the checkpoint is so itself"):
        pipe.generate(broken, PROMPT, seed=8, steps=1)
    conv = jax.tree.map(lambda a: a * jnp.nan, params["vae"]["post_quant_conv"])
    broken = {**params, "vae": {**params["vae"], "post_quant_conv": conv}}
    with pytest.raises(jaxl.NonFiniteError, match=r"seed 8.*; vae: [a-z0-9_.]+ of the checkpoint is so itself"):
        pipe.generate(broken, PROMPT, seed=8, steps=1)
    with pytest.raises(jaxl.NonFiniteError, match=r"seed 8 .*; lower `guidance_scale`$"):
        pipe.generate(params, PROMPT, seed=8, steps=1, guidance_scale=3e38)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt=.*the list is empty"),
        ({"prompt": 7}, "prompt=7: give a string"),
        ({"prompt": [PROMPT, None]}, "prompt=.*list of strings"),
        ({"prompt": [PROMPT] * 3, "negative_prompt": ["a", "b"]}, "negative_prompt=.*2 texts for 3 prompts"),
        ({"prompt_2": 5}, "prompt_2=5: give a string"),
        ({"num_images": 0}, "num_images=0"),
        ({"num_images": -3}, "num_images=-3"),
        ({"num_images": 1.5}, "num_images=1.5"),
        ({"steps": 0}, "steps=0.*1 to 1000"),
        ({"steps": 1001}, "steps=1001.*1 to 1000"),
        ({"steps": True}, "steps=True"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan.*finite"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale=.*2 values for 1 images"),
        ({"guidance_scale": "high"}, "guidance_scale='high'"),
        ({"width": 250}, "width=250.*248 or 256"),
        ({"height": 0}, "height=0"),
        ({"height": -8}, "height=-8"),
        ({"width": 256.0}, "width=256.0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"seed": [1, 2]}, "seed=.*2 seeds for 1 images"),
        ({"seed": "x"}, "seed='x'"),
        ({"scheduler": "eular"}, "scheduler='eular'.*did you mean 'euler'"),
        ({"scheduler": 3}, "scheduler=3"),
        ({"latents": np.zeros((1, 4, 8, 8))}, r"latents=.*\(1, 8, 8, 4\)"),
        ({"latents": np.full((1, 8, 8, 4), np.nan)}, "latents=.*NaN"),
        ({"clip_skip": 3}, "clip_skip=3.*0 to 2"),
        ({"output": "jpeg"}, "output='jpeg'"),
        ({"original_size": 512}, "original_size=512"),
        ({"target_size": (512, math.inf)}, "target_size=inf"),
    ],
)
def test_bad_arguments(small: Any, compilations: Any, arguments: dict[str, Any], message: str) -> None:
    pipe, params = small
    with compilations() as seen, pytest.raises(jaxl.InputError, match=message) as error:
        pipe.generate(params, **{"prompt": PROMPT, **arguments})
    assert "\n" not in str(error.value)
    assert seen == []


def test_a_misspelt_argument_is_a_type_error(small: Any) -> None:
    pipe, params = small
    with pytest.raises(TypeError, match="guidance"):
        pipe.generate(params, PROMPT, guidance=3.0)


def test_parameters_of_another_kind(small: Any) -> None:
    pipe, params = small
    half = jax.tree.map(lambda a: jax.device_put(np.asarray(a, jnp.bfloat16), a.sharding), params)
    for wrong in (half, {}, None, {"unet": params["unet"]}):
        with pytest.raises(jaxl.InputError, match="params="):
            pipe.generate(wrong, PROMPT)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int8])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(jaxl.InputError, match="dtype="):
        jaxl.from_pretrained("tiny", dtype=dtype)


def test_programs_compile_while_weights_load(small: Any) -> None:
    """`compile_for` begins before the first tensor is placed, and `generate` uses what it made."""
    bucket = jaxl.Bucket(1, 64, 64, guided=True)
    at_first: list[str] = []

    def watch(stage: str, done: int, total: int) -> None:
        if done == 1:
            at_first.extend(thread.name for thread in threading.enumerate())

    pipe, params = jaxl.from_pretrained(
        small[0].checkpoint.source,
        dtype=jnp.float32,
        mesh=small[0].mesh,
        split="images",  # programs are shared among pipelines that split pictures alike, and no other has these
        compile_for=[bucket],
        progress=watch,
    )
    assert "compile advance" in at_first
    advance = pipe.programs.get(ADVANCE, bucket)
    pipe.generate(params, PROMPT, width=64, height=64, steps=1)
    assert pipe.programs.get(ADVANCE, bucket) is advance


def test_save_and_load_again(small: Any, tmp_path: Path) -> None:
    pipe, params = small
    pipe.save_pretrained(tmp_path / "copy", params)
    again, its_params = jaxl.from_pretrained(tmp_path / "copy", dtype=jnp.float32, mesh=pipe.mesh)
    jax.tree.map(np.testing.assert_array_equal, its_params, params)
    assert again.model == pipe.model


def test_progress(small: Any) -> None:
    pipe, params = small
    heard: list[tuple[str, int, int]] = []
    report: Callable[..., None] = lambda *call: heard.append(call)  # noqa: E731
    pipe.generate(params, PROMPT, steps=2, progress=report)
    assert [call for call in heard if call[0] == "generate"] == [("generate", 1, 2), ("generate", 2, 2)]
    jaxl.from_pretrained("tiny", mesh=pipe.mesh, progress=report)
    loads = [call for call in heard if call[0] == "load"]
    assert loads[-1][1] == loads[-1][2] == len(loads)


def test_bfloat16_is_close_to_float32(small: Any) -> None:
    pipe, params = small
    coarse, coarse_params = jaxl.from_pretrained(pipe.checkpoint.source, mesh=pipe.mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(coarse_params)} == {jnp.dtype(jnp.bfloat16)}
    settings: dict[str, Any] = {"seed": 3, "steps": 8, "output": "numpy"}
    exact = pipe.generate(params, PROMPT, **settings)
    rough = coarse.generate(coarse_params, PROMPT, **settings)
    assert rough.latents.dtype == np.float32
    assert 10 * np.log10(1 / np.mean((exact.images - rough.images) ** 2)) > 30
