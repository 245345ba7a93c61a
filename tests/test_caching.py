"""Less work: which rows are shallow or left out, and that each image is its own whatever its neighbours do."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxl
from jaxl.call.controls import acting
from jaxl.call.options import LoadOptions
from jaxl.call.plan import Plan, Segment
from jaxl.diffusion.loop import Slots
from jaxl.diffusion.rows import COLUMNS
from jaxl.diffusion.tables import build_table
from jaxl.run.programs import ADVANCE, START

SMALL: dict[str, Any] = {"width": 64, "height": 64}
PROMPTS = ["a rocket on a purple background, noto style", "a llama", "a red apple"]
SHALLOW = COLUMNS.index("shallow")


def rows_of(plan: Plan) -> str:
    """F for a full row, s for a shallow one."""
    used = plan.rows[0, plan.first : plan.first + plan.count]
    return "".join("Fs"[int(value)] for value in used[:, SHALLOW])


def slots_of(pipe: Any, params: Any, plan: Plan, rows: np.ndarray, ends: list[int]) -> tuple[Slots, Any, Any]:
    """Slots for a plan of one segment with other rows and ends, what its program is told, and the program."""
    inputs = pipe.inputs(params, plan)
    beginning = replace(inputs.beginning(), rows=rows, end=np.array(ends, np.int32))
    slots = pipe.programs.get(START, plan.bucket)(beginning)
    slots = replace(slots, features=pipe.programs.no_features(plan.bucket))
    cond = inputs.conditioning(plan.segments[0], plan.bucket)
    return slots, cond, pipe.programs.get(ADVANCE, plan.bucket)


def test_which_rows_are_shallow(small: Any) -> None:
    pipe, _ = small

    def planned(**options: Any) -> str:
        return rows_of(pipe.plan("a cat", **{"steps": 7, **options}))

    assert planned() == planned(cache_interval=1) == "FFFFFFF"
    assert planned(cache_interval=3) == "FFsFssF"
    assert planned(cache_interval=9) == "FFsssss"
    # the first fifth of the schedule is whole
    assert planned(cache_interval=3, steps=20) == "FFFFssFssFssFssFssFs"
    # both rows of a step are of one kind
    assert planned(cache_interval=3, scheduler="heun") == "FFFFssFFssssF"
    # what is kept does not outlast a change of the program or of the text
    assert planned(cache_interval=3, steps=10, guidance_interval=(0, 0.5)) == "FFsFsFssFs"
    assert planned(cache_interval=4, steps=10, negative_prompt="[a:b:0.3]") == "FFsFsssFss"
    picture = np.zeros((64, 64, 3), np.uint8)
    assert planned(cache_interval=3, steps=10, image=picture, strength=0.5) == "FssFs"
    one = pipe.plan("a cat", steps=1, cache_interval=3)
    assert rows_of(one) == "F"
    assert one.bucket.cached, "the number of steps would compile"
    assert not pipe.plan("a cat", cache_interval=1).bucket.cached


def test_which_steps_are_made(small: Any) -> None:
    pipe, _ = small

    def planned(**options: Any) -> list[float]:
        plan = pipe.plan("a cat", **{"steps": 20, "scheduler": "euler", **options})
        return plan.rows[0, plan.first : plan.first + plan.count, COLUMNS.index("t")].tolist()

    def places(**options: Any) -> list[int]:
        return [planned().index(time) for time in planned(**options)]

    assert places(step_interval=1) == list(range(20))
    assert places(step_interval=3) == [0, 1, 2, 3, 6, 9, 12, 15, 18]
    # a run from a picture begins with a step, one that stops early ends at its level
    picture = np.zeros((64, 64, 3), np.uint8)
    assert places(step_interval=5, image=picture, strength=0.6) == [8, 13, 18]
    assert places(step_interval=7, denoising_end=0.5) == [0, 1, 2, 3, 7]
    # both rows of a step are made, or none
    heun = planned(step_interval=7, scheduler="heun", steps=14)
    assert heun[::2] == [planned(scheduler="heun", steps=14)[::2][place] for place in (0, 1, 2, 7)]
    assert len(heun) == 7
    # what is kept is kept for so many of the steps that are made
    assert rows_of(pipe.plan("a cat", steps=20, scheduler="euler", step_interval=2, cache_interval=2)) == "FFFFFsFsFsFs"
    assert pipe.plan("a cat", step_interval=3, scheduler="euler").bucket == pipe.plan("a cat", steps=7).bucket


def test_a_step_goes_over_those_that_are_left_out(small: Any) -> None:
    """Euler's method does the same with the network's output kept for the steps between."""
    pipe, params = small
    options: dict[str, Any] = {**SMALL, "scheduler": "euler", "steps": 9, "output": "latents", "guidance_scale": 1}
    got = pipe.generate(params, "a llama", **options, step_interval=3).latents
    sigmas = build_table(pipe.model.scheduler, 9, "euler").sigmas[[0, 1, 3, 6, 9]]
    wanted = pipe.generate(params, "a llama", **{**options, "steps": None}, sigmas=sigmas).latents
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_windows_are_shares_of_the_schedule_whatever_is_left_out() -> None:
    assert acting(0.0, 0.5, 4, [0, 1, 2, 3, 6, 9, 12, 15, 18], 20) == (4, 10)
    assert acting(0.3, 1.0, 4, [0, 1, 2, 3, 6, 9, 12, 15, 18], 20) == (8, 13)


def test_speeds(small: Any) -> None:
    pipe, _ = small

    def planned(**options: Any) -> tuple[str, list[tuple[int, bool]]]:
        plan = pipe.plan("a cat", steps=10, **options)
        return rows_of(plan), [(segment.rows, segment.steered) for segment in plan.segments]

    assert planned(speed="exact") == planned()
    assert planned(speed="balanced") == planned(cache_interval=3)
    assert planned(speed="fast") == planned(cache_interval=5, guidance_interval=(0, 0.8))
    # what is given goes before it
    assert planned(speed="fast", cache_interval=1) == planned(guidance_interval=(0, 0.8))
    assert planned(speed="fast", cache_interval=4, guidance_interval=(0, 1)) == planned(cache_interval=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_interval": 0}, "cache_interval=0: give a whole number of at least 1"),
        ({"cache_interval": 2.5}, "cache_interval=2.5"),
        ({"cache_interval": [2]}, "cache_interval="),
        ({"step_interval": 0}, "step_interval=0: give a whole number of at least 1"),
        ({"step_interval": 2, "scheduler": "euler_a"}, "step_interval=2: scheduler 'euler_a' adds noise in each step"),
        (
            {"step_interval": 2, "scheduler": "ddim"},
            "scheduler 'ddim' counts timesteps from step to step",
        ),
        ({"speed": "faster"}, "speed='faster': did you mean 'fast'"),
        ({"speed": ["fast"]}, "speed=.*known: balanced, exact, fast"),
        ({"speed": 2}, "speed=2: known"),
    ],
)
def test_bad_values(small: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(jaxl.InputError, match=message):
        small[0].plan("a cat", **options)


def test_a_shallow_row_where_the_last_whole_one_was_is_exact(small: Any) -> None:
    """Every branch goes by its own features, with all kinds of guidance: each row is run twice, and moves once."""
    pipe, params = small
    guidance = {"pag_scale": 2.0, "freeu": (0.9, 0.2, 1.1, 1.2)}
    options: dict[str, Any] = {**SMALL, **guidance, "steps": 3, "scheduler": "ddim"}
    plan = pipe.plan("a llama", **options, cache_interval=2)
    assert (plan.bucket.branches, plan.bucket.cached) == (3, True)

    def draw(rows: np.ndarray, count: int) -> np.ndarray:
        slots, cond, run = slots_of(pipe, params, plan, rows, [count])
        given = pipe.programs.none_given(plan.bucket)
        return np.asarray(run(params["unet"], slots, cond, np.int32(count), (), given).latents)

    whole = plan.rows.copy()
    whole[:, :, SHALLOW] = 0
    exact = draw(whole, 3)
    rows = whole.copy()
    rows[:, 0:6:2] = rows[:, 1:6:2] = whole[:, :3]
    stays = np.array([name.startswith(("x_", "saved_", "push_")) for name in COLUMNS])
    rows[:, 0:6:2, stays] = 0
    rows[:, 0:6:2, [COLUMNS.index("x_x"), COLUMNS.index("saved_saved")]] = 1
    rows[:, 1:6:2, SHALLOW] = 1
    np.testing.assert_allclose(draw(rows, 6), exact, atol=1e-4)
    # and with what an earlier row kept it is another picture
    rows[:, 2:6, SHALLOW] = 1
    assert np.abs(draw(rows, 6) - exact).max() > 0.01


def test_an_image_does_not_depend_on_its_neighbours_or_the_devices(small: Any, compilations: Any) -> None:
    pipe, params = small
    each: list[dict[str, Any]] = [
        {"cache_interval": 3, "steps": 5, "scheduler": "euler_a"},
        {"cache_interval": 1, "steps": 4, "scheduler": "heun"},
        {"cache_interval": 2, "steps": 3, "scheduler": "dpm++2m"},
    ]
    own = [{**SMALL, "seed": seed, **options} for seed, options in enumerate(each)]
    alone = [pipe.generate(params, p, **o, output="latents").latents for p, o in zip(PROMPTS, own, strict=True)]
    plain = pipe.generate(params, PROMPTS[0], **{**own[0], "cache_interval": 1}, output="latents").latents
    assert np.abs(alone[0] - plain).max() > 0.01
    for mesh in (pipe.mesh, jaxl.make_mesh(jax.devices()[:2])):
        other, its_params = jaxl.from_pretrained(
            pipe.checkpoint.source, dtype=jnp.float32, mesh=mesh, shard_params=mesh.size > 1
        )
        plans = [other.plan(p, **o) for p, o in zip(PROMPTS, own, strict=True)]
        ends = [plan.count for plan in plans]
        together = other.plan(PROMPTS, **SMALL, seed=[0, 1, 2], cache_interval=2)
        order = together.filled
        together = replace(
            together,
            segments=(Segment(max(ends), steered=True, version=0),),
            noise_scale=np.array([plans[i].noise_scale for i in order]),
        )
        rows = np.concatenate([plans[i].rows for i in order])
        slots, cond, run = slots_of(other, its_params, together, rows, [ends[i] for i in order])
        given = other.programs.none_given(together.bucket)
        with compilations() as seen:
            for n in (1, 2, 9):  # in portions, as a server would
                slots = run(its_params["unet"], slots, cond, np.int32(n), (), given)
        assert seen == []
        for got, wanted in zip(np.asarray(slots.latents), alone, strict=False):
            np.testing.assert_allclose(got, wanted[0], atol=2e-4)


def test_step_by_step_and_nothing_compiles_for_a_value(small: Any, compilations: Any) -> None:
    pipe, params = small
    settings: dict[str, Any] = {**SMALL, "output": "latents", "steps": 5}
    whole = pipe.generate(params, "a llama", **settings, cache_interval=2)
    with compilations() as seen:
        watched = pipe.generate(params, "a llama", **settings, cache_interval=2, callback=lambda *_: None)
        pipe.generate(params, "a cat", **{**settings, "steps": 3}, cache_interval=7, scheduler="heun", guidance_scale=2)
    assert seen == []
    np.testing.assert_array_equal(whole.latents, watched.latents)


def test_inpainting_keeps_what_the_mask_keeps(small: Any) -> None:
    pipe, params = small
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    settings: dict[str, Any] = {**SMALL, "image": picture, "mask": mask, "steps": 6, "output": "latents"}
    got, exact = (pipe.generate(params, "a llama", **settings, cache_interval=n).latents for n in (2, 1))
    np.testing.assert_allclose(got[:, :, :4], exact[:, :, :4], atol=1e-4)
    assert 1e-3 < np.abs(got - exact)[:, :, 4:].max() < np.abs(exact).max()


def test_features_have_the_dtype_of_the_compute_and_lie_with_their_images(small: Any) -> None:
    pipe, _ = small
    half = jaxl.Pipeline(pipe.checkpoint, LoadOptions(dtype=jnp.bfloat16, mesh=jaxl.make_mesh(jax.devices())))
    bucket = half.plan(["a cat"] * 8, **SMALL, cache_interval=2).bucket
    features: Any = half.programs.no_features(bucket).deep
    assert (features.shape, features.dtype) == ((8, 2, 8, 8, 32), jnp.bfloat16)
    assert {shard.data.shape[0] for shard in features.addressable_shards} == {1}
    out = half.programs.trace(ADVANCE, bucket).out_info.features.deep
    assert (out.shape, out.dtype) == (features.shape, features.dtype)
    plain: Any = half.programs.no_features(bucket.plain).deep
    assert plain.shape[1] == 1
    assert half.programs.no_features(replace(bucket, cached=False)).deep is None
