"""Images with noise of many programs: in one batch, equal to themselves alone, and what a seed's noise is drawn for."""

from dataclasses import replace
from itertools import islice
from typing import Any

import jax
import numpy as np
import pytest

import jaxl
from jaxl.backend import PipelineBackend
from jaxl.bench.measure import compilations
from jaxl.call.row_noise import RowNoise
from jaxl.engine import Engine, Request
from jaxl.run.bucket import GIVEN_ROWS, Bucket

A_WHILE = 600.0  # no measure of anything: only who fails waits so long
SIZE = {"width": 64, "height": 64, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def backend(small: Any) -> PipelineBackend:
    mesh = jaxl.make_mesh(jax.devices())
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype="float32", mesh=mesh)
    backend = PipelineBackend(pipe, params, [Bucket(1, 64, 64, guided=False)], [5])
    backend.warm_up()
    return backend


def test_five_sources_in_a_batch(backend: PipelineBackend) -> None:
    """Each image is the same as alone, bit for bit, and nothing compiles for its noise."""
    kinds: list[dict[str, Any]] = [
        {"scheduler": "euler_a", "steps": 9},
        {"scheduler": "euler_a", "noise": "torch", "steps": 9, "eta_noise_seed_delta": 31337},
        {"scheduler": "dpm2_a", "noise": "nv", "steps": 4},
        {"scheduler": "dpm++sde_karras", "noise": "cuda:t4", "steps": 5},
        {
            "scheduler": "dpm++2m_sde",
            "noise": "torch",
            "step_noise": "nv",
            "variation_seed": 4,
            "variation_strength": 0.5,
        },
    ]
    asked = [{"prompt": "a cat", "seed": i, **SIZE, "steps": 7, **kind} for i, kind in enumerate(kinds)]
    with compilations() as compiled, Engine(backend) as engine:
        together = [ticket.future.result(A_WHILE) for ticket in [engine.submit(Request(kind)) for kind in asked]]
        alone = [engine.submit(Request(kind)).future.result(A_WHILE) for kind in asked]
    assert compiled == []
    pictures = [np.asarray(result.images[0]) for result in together]
    for own, result in zip(pictures, alone, strict=True):
        np.testing.assert_array_equal(own, np.asarray(result.images[0]))
    assert len({own.tobytes() for own in pictures}) == len(pictures)


def test_generate_draws_what_the_engine_draws(backend: PipelineBackend) -> None:
    kind = {"prompt": "a cat", "seed": 5, **SIZE, "steps": 6, "scheduler": "euler_a", "noise": "torch", "num_images": 3}
    with Engine(backend) as engine:
        drawn = engine.submit(Request(kind)).future.result(A_WHILE).images
    result = backend.pipe.generate(backend.params, **kind)
    for own, same in zip(drawn, result.images, strict=True):
        assert np.abs(np.asarray(own).astype(int) - np.asarray(same)).max() <= 1
    seen = []
    watched = backend.pipe.generate(backend.params, **kind, callback=lambda *told: seen.append(told[0]))
    assert seen == [*range(1, 7)]
    np.testing.assert_allclose(watched.latents, result.latents, atol=1e-5)


def test_rows_take_the_draws_in_turn(small: Any) -> None:
    """Over several calls of the program, each of which is given the noise of a few rows."""
    pipe, params = small
    kind: dict[str, Any] = {**SIZE, "steps": GIVEN_ROWS + 2, "scheduler": "euler_a", "noise": "torch", "seed": 3}
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
