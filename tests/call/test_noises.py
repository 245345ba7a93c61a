"""The noise of images as other programs' seeds stand for it: which numbers each image draws, and when."""

import threading
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from jaxl.call import row_noise
from jaxl.call.plan import Plan
from jaxl.call.row_noise import DrawnAhead, RowNoise
from jaxl.diffusion.brownian import BrownianNoise
from jaxl.diffusion.other_noise import Numbers
from jaxl.diffusion.variation import blended, pasted
from jaxl.errors import InputError
from jaxl.run.bucket import GIVEN_ROWS

SHAPE = (8, 8, 4)
UNGUIDED = {"width": 64, "height": 64, "guidance_scale": 1.0}


@pytest.fixture
def planned(small: Any) -> Any:
    return lambda **options: small[0].plan(
        "a cat", **{"steps": 4, "width": 64, "height": 64, "noise": "torch", **options}
    )


def torchs(generator: torch.Generator, images: int = 1, draws: int = 1) -> list[np.ndarray]:
    """The next draws of a generator, each of so many images."""
    return [torch.randn(images, 4, 8, 8, generator=generator).numpy().transpose(0, 2, 3, 1) for _ in range(draws)]


def of_rows(plan: Plan, image: int = 0) -> list[np.ndarray]:
    assert plan.row_noise is not None
    noise = plan.row_noise[image]
    return [*islice(noise.draws(), int(noise.rows.sum()))]


def test_each_image_goes_on_with_its_generator(planned: Any) -> None:
    """As in A1111 and diffusers, whose ancestral samplers draw nothing in the last step, to 0."""
    plan = planned(scheduler="euler_a", seed=7, num_images=2)
    for image in range(2):
        first, *others = torchs(torch.Generator().manual_seed(7 + image), draws=4)
        np.testing.assert_allclose(plan.noise[image], first[0], atol=2e-6)
        np.testing.assert_allclose(of_rows(plan, image), np.concatenate(others), atol=2e-6)
    assert plan.row_noise[0].rows.tolist() == [True, True, True, False]
    rows = planned(scheduler="dpm2_a").row_noise[0].rows
    assert rows.tolist() == [False, True] * 3 + [False]  # in the second row of a step


def test_steps_with_a_generator_of_their_own(planned: Any) -> None:
    later = torchs(torch.Generator().manual_seed(7 + 31337), draws=3)
    plan = planned(scheduler="euler_a", seed=7, eta_noise_seed_delta=31337)
    np.testing.assert_allclose(of_rows(plan), np.concatenate(later), atol=2e-6)
    same = of_rows(planned(scheduler="euler_a", seed=7, eta_noise_seed_delta=0))
    np.testing.assert_array_equal(same[0], planned(seed=7).noise[0])  # as ComfyUI's on a CPU
    other = planned(scheduler="euler_a", seed=7, step_noise="nv")
    np.testing.assert_array_equal(of_rows(other)[0], next(Numbers("nv", 7, SHAPE).draws()))
    assert planned(scheduler="euler_a", step_noise="jaxl").row_noise is None
    assert planned(scheduler="euler").row_noise is None
    assert planned(scheduler="euler_a", eta=0.0).row_noise is None
    assert planned(scheduler="euler_a", noise="jaxl").row_noise is None


def test_a_generator_that_draws_the_batch(planned: Any) -> None:
    first, second, *_ = torchs(torch.Generator().manual_seed(7), images=3, draws=4)
    plan = planned(scheduler="euler_a", seed=7, num_images=3, noise_batch=(0, 3))
    assert plan.seeds == [7, 7, 7]
    np.testing.assert_allclose(plan.noise, first, atol=2e-6)
    np.testing.assert_allclose([of_rows(plan, i)[0] for i in range(3)], second, atol=2e-6)
    alone = planned(scheduler="euler_a", seed=7, noise_batch=(2, 3))
    np.testing.assert_array_equal(alone.noise[0], plan.noise[2])
    np.testing.assert_array_equal(of_rows(alone), of_rows(plan, 2))


@pytest.mark.parametrize(("scheduler", "rows"), [("dpm++2m_sde_karras", 3), ("dpm++3m_sde", 3), ("dpm++sde_karras", 6)])
def test_a_brownian_path_over_sigma(planned: Any, scheduler: str, rows: int) -> None:
    """The rows of a run from a picture take their parts of the same path, of the whole schedule."""
    whole = planned(scheduler=scheduler, seed=7, num_images=2)
    noise = of_rows(whole, 1)
    assert len(noise) == rows
    own = whole.row_noise[1].draws.__self__
    assert isinstance(own, BrownianNoise)
    assert own.numbers.seed == 8
    assert own.steps[0][0] == own.highest
    assert [there for _, there in own.steps[:-1]] == [here for here, _ in own.steps[1:]]
    part = planned(scheduler=scheduler, seed=8, image=np.zeros((64, 64, 3), np.uint8), strength=0.5)
    np.testing.assert_allclose(of_rows(part)[-1], noise[-1], atol=1e-5)
    draws = planned(scheduler=scheduler, seed=7, sde_noise="draws")
    np.testing.assert_array_equal(of_rows(draws), [*islice(Numbers("torch", 7, SHAPE).draws(), 1, rows + 1)])


def test_variations_of_a_seed(planned: Any) -> None:
    plan = planned(seed=7, variation_seed=20, variation_strength=0.3, num_images=2)
    assert plan.seeds == [7, 7]
    for image in range(2):
        one, two = (next(Numbers("torch", seed, SHAPE).draws()) for seed in (7, 20 + image))
        np.testing.assert_array_equal(plan.noise[image], blended(one, two, np.float32(0.3)))


def test_noise_of_another_size(planned: Any) -> None:
    plan = planned(seed=7, seed_resize_from=(48, 96), variation_seed=20, variation_strength=0.3)
    one, two = (next(Numbers("torch", seed, (12, 6, 4)).draws()) for seed in (7, 20))
    own = next(Numbers("torch", 7, SHAPE).draws())
    np.testing.assert_array_equal(plan.noise[0], pasted(blended(one, two, np.float32(0.3)), own))


def test_variations_of_jaxls_own_noise(small: Any) -> None:
    """They are drawn on the devices: 0 and 1 are the two seeds' own."""
    pipe, params = small

    def draw(**options: Any) -> np.ndarray:
        return pipe.generate(params, "a cat", steps=1, output="latents", **UNGUIDED, **options).latents[0]

    one, two = draw(seed=3), draw(seed=4)
    np.testing.assert_array_equal(draw(seed=3, variation_seed=4, variation_strength=0.0), one)
    np.testing.assert_allclose(draw(seed=3, variation_seed=4, variation_strength=1.0), two, atol=1e-4)
    between = draw(seed=3, variation_seed=4, variation_strength=0.1)
    assert np.abs(between - one).mean() < np.abs(between - two).mean()


def test_rows_take_the_draws_in_turn(small: Any) -> None:
    """Over several calls of the program, each of which is given the noise of a few rows; watched, over more of them."""
    pipe, params = small
    kind: dict[str, Any] = {**UNGUIDED, "steps": GIVEN_ROWS + 2, "scheduler": "euler_a", "noise": "torch", "seed": 3}
    plan = pipe.plan("a cat", **kind)
    rows = plan.row_noise[0].rows
    order = [*islice(plan.row_noise[0].draws(), int(rows.sum()))]

    def draw(numbers: list[np.ndarray]) -> np.ndarray:
        with_these = replace(plan, row_noise=[RowNoise(lambda: iter(numbers), rows)])
        return pipe.run(params, with_these, output="latents").latents

    drawn = pipe.run(params, plan, output="latents").latents
    np.testing.assert_array_equal(draw(order), drawn)
    for place in range(len(order)):
        changed = [*order[:place], order[place] + 0.1, *order[place + 1 :]]
        assert np.abs(draw(changed) - drawn).max() > 1e-3
    seen: list[int] = []
    watched = pipe.generate(params, "a cat", **kind, output="latents", callback=lambda *told: seen.append(told[0]))
    assert seen == [*range(1, kind["steps"] + 1)]
    np.testing.assert_allclose(watched.latents, drawn, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "tarch"}, "noise='tarch'.*torch"),
        ({"noise": "cuda:t5"}, "noise='cuda:t5'.*cuda:t4"),
        ({"step_noise": "tarch"}, "step_noise='tarch'.*torch"),
        ({"sde_noise": "brown"}, "sde_noise='brown': give 'brownian', 'brownian_run' or 'draws'"),
        ({"noise_batch": (1, 1)}, "noise_batch=.*give the first image's place and the number"),
        ({"noise": "jaxl", "noise_batch": (0, 1)}, "noise_batch=.*is for noise of other programs; give noise='torch'"),
        (
            {"noise": "jaxl", "eta_noise_seed_delta": 31337},
            "eta_noise_seed_delta=31337: is for noise of other programs",
        ),
        ({"noise": "jaxl", "seed_resize_from": (512, 512)}, "seed_resize_from=.*is for noise of other programs"),
        ({"seed_resize_from": (512, 4)}, "seed_resize_from=4: give a whole number of at least 8"),
        ({"seed_resize_from": 512}, "seed_resize_from=512: give width and height"),
        ({"variation_strength": 2}, "variation_strength=2: give a number from 0 to 1"),
        ({"variation_seed": -1}, "variation_seed=-1: give a whole number from 0"),
        ({"eta_noise_seed_delta": [1, 2]}, "eta_noise_seed_delta=.*2 values for 1 images"),
        ({"latents": np.zeros((1, 8, 8, 4))}, "noise='torch': `latents` are the noise already"),
        ({"scheduler": "euler", "s_churn": 1.0}, "s_churn=1.0: noise of other programs is not drawn for churn"),
        ({"width": 8, "height": 8}, "noise='torch': draws no images of 1x1 latents"),
    ],
)
def test_what_cannot_be(planned: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**options)


def test_noise_is_drawn_ahead_but_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_noise, "AHEAD", 3)
    drawn, told = [], threading.Event()

    def numbers() -> Any:
        for i in range(1, 100):
            drawn.append(i)
            yield np.full(SHAPE, i, np.float32)

    ahead = DrawnAhead(RowNoise(numbers, np.arange(20) % 2 == 1))
    assert not ahead.ready
    ahead.begin(told.set)
    assert told.wait(60)
    assert (ahead.ready, drawn) == (True, [1, 2, 3])
    rows = np.zeros((20, *SHAPE), np.float32)
    for first in range(0, 20, 4):
        ahead.take(rows[first : first + 4])
    assert rows[:, 0, 0, 0].tolist() == [(i + 1) // 2 * (i % 2) for i in range(20)]
    assert ahead.ready
    assert drawn == [*range(1, 11)]


def test_an_error_comes_to_whoever_waits_for_noise() -> None:
    def numbers() -> Any:
        raise MemoryError("no room")
        yield

    ahead = DrawnAhead(RowNoise(numbers, np.ones(2, bool)))
    with pytest.raises(MemoryError, match="no room"):
        ahead.take(np.zeros((2, *SHAPE), np.float32))
    assert ahead.ready
