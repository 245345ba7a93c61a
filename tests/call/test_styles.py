"""Styles: levels, steps, prompts and pixels as other programs have them, each of which is an option of its own."""

from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trajectories import SDXL

from jaxl.call.options import DrawOptions
from jaxl.call.plan import Plan
from jaxl.call.seeds import counts_up, of_image
from jaxl.call.styles import STYLES, styled
from jaxl.diffusion.other_noise import Numbers
from jaxl.diffusion.rows import COLUMNS
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.errors import InputError
from jaxl.run.bucket import Branch

PICTURE = Image.new("RGB", (64, 64), "red")
SMALL = {"width": 64, "height": 64}


@pytest.fixture
def planned(small: Any) -> Any:
    return lambda style, **options: small[0].plan("a cat", **{**SMALL, "style": style, **options})


def column(plan: Plan, name: str) -> np.ndarray:
    return plan.rows[0, plan.first : plan.first + plan.count, COLUMNS.index(name)]


def levels(plan: Plan) -> np.ndarray:
    """The sigmas at which the network is called."""
    return np.sqrt(1 / column(plan, "c_in").astype(np.float64) ** 2 - 1)


# as k-diffusion and ComfyUI print them for SDXL's betas, which are also those of the small model
@pytest.mark.parametrize(
    ("style", "scheduler", "times", "sigmas"),
    [
        ("a1111", "euler", (999, 946.42, 893.84), (14.614640, 10.746800, 8.081519)),
        ("a1111", "euler_karras", (999, 961.733, 921.042), None),
        ("comfyui", "euler_karras", (999, 962, 921), None),
        ("swarmui", "euler_a", (999, 946, 894), (14.614640, 10.746800, 8.081519)),
        ("a1111", "dpm++2m", (999, 961.733, 921.042), None),  # Karras, where nothing is chosen
    ],
)
def test_levels(planned: Any, style: str, scheduler: str, times: Any, sigmas: Any) -> None:
    plan = planned(style, scheduler=scheduler, steps=20)
    np.testing.assert_allclose(column(plan, "t")[:3], times, atol=6e-3)
    if sigmas is not None:
        np.testing.assert_allclose(levels(plan)[:3], sigmas, rtol=1e-4)
        highest = np.hypot(sigmas[0], style != "a1111")
        assert plan.noise_scale == pytest.approx(highest, rel=1e-5)


def test_the_last_level_but_one_is_left_out(planned: Any) -> None:
    for style, scheduler in (("a1111", "dpm2"), ("comfyui", "dpm2_a_karras")):
        plan, more = (planned(style, scheduler=scheduler, steps=n, discard_penultimate=n == 6) for n in (6, 7))
        assert plan.steps == 6
        np.testing.assert_allclose(levels(plan)[:10:2], levels(more)[:10:2], rtol=1e-5)
        assert planned(style, scheduler=scheduler, steps=6).rows.tobytes() == plan.rows.tobytes()


@pytest.mark.parametrize(
    ("style", "strength", "run", "of"),
    [
        ("a1111", 0.5, 11, 20),
        ("a1111", 1.0, 20, 20),
        ("comfyui", 0.5, 20, 40),
        ("comfyui", 0.75, 20, 26),
        ("comfyui", 1.0, 20, 20),
        ("diffusers", 0.5, 10, 20),
    ],
)
def test_steps_from_a_picture(planned: Any, style: str, strength: float, run: int, of: int) -> None:
    plan = planned(style, scheduler="euler", image=PICTURE, strength=strength, steps=20)
    assert (plan.count, plan.steps) == (run, of)
    assert planned(style, scheduler="euler", steps=20).count == 20


def test_samplers_that_count_timesteps_begin_with_more_noise_than_they_tell(planned: Any) -> None:
    """A1111's own from a picture; their first noise is not scaled."""
    shares = SchedulerConfig(NoiseSchedule(**SDXL)).noise.alphas_cumprod()
    for scheduler, rows in (("ddim", 9), ("plms", 10)):
        plan = planned("a1111", scheduler=scheduler, image=PICTURE, strength=0.5, steps=20)
        assert (plan.scheduler, plan.count, plan.steps) == (f"{scheduler}_a1111", rows, 19)
        assert column(plan, "t")[0] == 451
        np.testing.assert_allclose([plan.picture_scale**2, plan.noise_scale**2], [shares[501], 1 - shares[501]])
        assert planned("a1111", scheduler=scheduler, steps=20).noise_scale == 1


@pytest.mark.parametrize(
    ("style", "scheduler", "form"),
    [
        ("comfyui", "ddim", "euler_uniform"),
        ("comfyui", "ddpm", "euler_a_uniform"),
        ("comfyui", "uni_pc", "unipc_comfyui_uniform"),
        ("comfyui", "uni_pc_bh2 karras", "unipc_bh2_comfyui_karras"),
        ("swarmui", "deis simple", "deis_comfyui_simple"),
        ("forge", "UniPC", "unipc_a1111"),
        ("a1111", "DDIM CFG++", "ddim_cfg++_a1111"),
        ("diffusers", "deis", "deis"),
    ],
)
def test_a_program_has_forms_of_its_own(planned: Any, style: str, scheduler: str, form: str) -> None:
    assert planned(style, scheduler=scheduler, steps=4).scheduler == form


def test_noise(planned: Any) -> None:
    def draws(source: str, seed: int, n: int, first: int = 0, **batch: int) -> list[np.ndarray]:
        return [*islice(Numbers(source, seed, (8, 8, 4), **batch).draws(), first, first + n)]

    def steps(plan: Plan, image: int) -> np.ndarray:
        return next(plan.row_noise[image].draws())

    asked = {"scheduler": "euler_a", "seed": 7, "num_images": 2, "steps": 4}
    for style, source, seeds in (
        ("a1111", "cuda", [7, 8]),
        ("swarmui", "torch", [7, 8]),
        ("invokeai", "torch", [7, 8]),
    ):
        plan = planned(style, **asked)
        assert plan.seeds == seeds
        np.testing.assert_array_equal(plan.noise[1], draws(source, 8, 1)[0])
    np.testing.assert_array_equal(steps(planned("a1111", **asked), 1), draws("cuda", 8, 1, first=1)[0])
    np.testing.assert_array_equal(steps(planned("swarmui", **asked), 1), draws("cuda", 8, 1)[0])
    np.testing.assert_array_equal(steps(planned("invokeai", **asked), 1), draws("cuda", 0xFFFFFFFF ^ 8, 1)[0])
    for style, source, first in (("comfyui", "cuda", 0), ("diffusers", "torch", 1)):
        plan = planned(style, **asked)
        assert plan.seeds == [7, 7]
        np.testing.assert_array_equal(plan.noise[1], draws("torch", 7, 1, place=1, of=2)[0])
        np.testing.assert_array_equal(steps(plan, 1), draws(source, 7, 1, first=first, place=1, of=2)[0])
    assert (
        planned("comfyui", **{**asked, "scheduler": "dpm++2m_sde"}).row_noise[0].draws.__self__.numbers.source
        == "torch"
    )


def test_an_image_alone_is_that_of_its_batch(planned: Any) -> None:
    """What a file tells of an image, by its number, draws it again."""
    for style in STYLES:
        asked = {"style": style, "scheduler": "euler_a", "seed": 7, "num_images": 3, "steps": 3, "variation_seed": 9}
        whole = planned(**asked)
        assert counts_up(asked) == (style not in ("comfyui", "diffusers"))
        alone = planned(**{**asked, **of_image(asked, whole.seeds[2], 2), "num_images": 1})
        np.testing.assert_array_equal(alone.noise[0], whole.noise[2])
        np.testing.assert_array_equal(next(alone.row_noise[0].draws()), next(whole.row_noise[2].draws()))


def test_negative_prompts_that_are_empty(planned: Any) -> None:
    def negative(style: str, text: str | None) -> bool:
        return planned(style, negative_prompt=text, steps=1).texts[0][0][Branch.NEGATIVE] is not None

    styles = ("a1111", "comfyui", "diffusers", "invokeai")
    assert [negative(style, None) for style in styles] == [False, True, True, False]  # this model takes no zeros
    assert [negative(style, "") for style in styles] == [False, True, True, False]
    assert all(negative(style, "dark") for style in styles)


def test_a_style_is_made_of_options(planned: Any) -> None:
    """Each of which can be given alone, and goes before the style's."""
    for style in STYLES:
        for scheduler in ("euler_a", "dpm++2m_sde", "ddim", "dpm2_karras", "unipc"):
            asked = {**SMALL, "steps": 6, "seed": 3, "scheduler": scheduler, "image": PICTURE, "strength": 0.5}
            own = styled({**asked, "style": style}, "euler", 1)
            assert own.pop("style") == style
            assert own.keys() <= DrawOptions.__annotations__.keys()
            by_style, by_options = planned(style, **asked), planned(None, **own)
            for field in fields(Plan):
                one, other = getattr(by_style, field.name), getattr(by_options, field.name)
                if isinstance(one, np.ndarray | int | float | str):
                    assert np.array_equal(one, other), field.name
    assert planned("a1111", noise="torch", steps=2).noise.tobytes() != planned("a1111", steps=2).noise.tobytes()
    assert planned("a1111", noise="jaxl", steps=2).noise is None
    given = np.zeros((1, 8, 8, 4), np.float32)
    plan = planned("diffusers", latents=given, scheduler="euler_a", steps=2)
    assert plan.noise is not None
    assert not plan.noise.any()
    assert plan.row_noise is not None
    assert planned("comfyui", sigmas=[10.0, 5.0, 0.0], scheduler="euler").steps == 2


def test_emphasis(small: Any) -> None:
    """By the formulas of A1111 and ComfyUI, from embeddings without weights."""
    pipe, params = small

    def embedded(text: str, emphasis: str) -> np.ndarray:
        plan = pipe.plan(text, **SMALL, steps=1, guidance_scale=1.0, emphasis=emphasis)
        inputs = pipe.inputs(params, plan)
        (chunk,) = plan.texts[0][0][Branch.POSITIVE]
        text = inputs.encoder.emphasised(chunk, 0, (), plan.bucket, plan.emphasis, plan.empty)
        return np.asarray(text.prompt_embeds)[0]

    plain, empty = embedded("a cat", "original"), embedded("", "original")
    weights = np.ones((77, 1), np.float32)
    weights[2] = 1.5
    np.testing.assert_array_equal(embedded("a (cat:1.5)", "ignore"), plain)
    np.testing.assert_allclose(embedded("a (cat:1.5)", "no_norm"), plain * weights, rtol=1e-6)
    np.testing.assert_allclose(embedded("a (cat:1.5)", "comfyui"), empty + (plain - empty) * weights, atol=1e-6)
    assert np.abs(embedded("a (cat:1.5)", "original") - plain * weights).max() > 1e-4


def test_bytes(small: Any) -> None:
    pipe, params = small
    asked = {**SMALL, "steps": 1, "guidance_scale": 1.0}
    exact = pipe.generate(params, "a cat", **asked, output="numpy").images[0]
    cut = np.asarray(pipe.generate(params, "a cat", **asked, byte_rounding="truncate").images[0])
    np.testing.assert_array_equal(cut, (exact * 255).astype(np.uint8))
    assert (cut != np.asarray(pipe.generate(params, "a cat", **asked).images[0])).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "a111"}, "style='a111'.*did you mean 'a1111'"),
        ({"emphasis": "strong"}, "emphasis='strong'.*known: comfyui, ignore, no_norm, original"),
        ({"empty_negative": "none"}, "empty_negative='none'.*encoded, zeros"),
        ({"byte_rounding": "up"}, "byte_rounding='up'.*round, truncate"),
        ({"strength_steps": "all"}, "strength_steps='all': known: part, part.0, part.1, part-1, whole, whole-1"),
        ({"timestep_rounding": "down"}, "timestep_rounding='down': must be 'none', 'nearest' or 'distilled'"),
        ({"start_scale": 1}, "start_scale=1: must be 'sigma' or 'variance'"),
        ({"discard_penultimate": True, "scheduler": "ddim"}, "discard_penultimate=True: scheduler 'ddim' counts"),
        ({"discard_penultimate": True, "sigmas": [1.0, 0.0]}, "discard_penultimate=True: sigmas are given"),
        ({"eta_noise_seed_delta": "other", "noise": "nv"}, "eta_noise_seed_delta='other': give a whole number"),
    ],
)
def test_what_cannot_be(planned: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(options.pop("style", None), **options)
