"""Trials of eight bits, on a network that is a sum: where rows are tried, what is compared, and which layers count."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxl
from jaxl.call.trials import Trials
from jaxl.run.programs import ADVANCE, DECODE, START

ERRORS = {"a": 0.004, "b": 0.002}  # of a row, where the layer is rounded
OF_IMAGES = jnp.array([1.0, 100.0])[:, None, None, None]  # the second only fills the bucket


class State(NamedTuple):
    latents: jax.Array
    row: jax.Array


@pytest.fixture
def trials() -> tuple[Trials, list[int]]:
    """Trials of two inputs of ten rows in two segments, and the list of rows that run alone."""
    alone: list[int] = []

    def advance(error: float, slots: State, told: float, n: np.ndarray, controls: Any, given: Any) -> State:
        assert (controls, given) == ((), None)
        if n == 1:
            alone.append(int(slots.row))
        return State(slots.latents + n * (told + error * OF_IMAGES), slots.row + n)

    run: dict[Any, Any] = {START: lambda began: began, ADVANCE: advance, DECODE: lambda vae, x: (x, None, None)}
    mesh = jaxl.make_mesh(jax.devices()[:1])
    programs: Any = SimpleNamespace(
        target=SimpleNamespace(mesh=mesh), get=lambda program, bucket: run[program], none_given=lambda bucket: None
    )
    segments = [SimpleNamespace(rows=4), SimpleNamespace(rows=6)]
    plan = SimpleNamespace(batch=1, count=10, segments=segments, bucket=None, bucket_of=lambda segment: None)
    inputs: Any = [
        SimpleNamespace(
            plan=plan,
            beginning=lambda first=first: State(jnp.full((2, 4, 4, 1), first), jnp.int32(0)),
            conditionings=lambda: [0.01, 0.02],
        )
        for first in (0.0, 0.5)
    ]
    rounding: Any = lambda layers: sum(map(ERRORS.__getitem__, layers))  # noqa: E731
    return Trials(programs, {"vae": {}}, inputs, rounding), alone


def test_what_a_group_does_alone(trials: Any) -> None:
    found, alone = trials
    told: list[tuple[int, int]] = []
    groups = [("a",), ("a", "b")]
    errors = found.errors(groups, lambda *done: told.append(done))
    for group in groups:
        error = sum(ERRORS[layer] for layer in group)
        np.testing.assert_allclose(errors[group], 3 * 16 * (1 + 100**2) * error**2, rtol=1e-3)
    assert alone[-9:] == [1, 5, 9] * 3, "the exact ones, then those of each group"
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("layers", [["a"], ["b"], ["a", "b"]])
def test_how_far_pictures_are(trials: Any, layers: list[str]) -> None:
    """What only fills a bucket does not count."""
    error = 10 * sum(ERRORS[layer] for layer in layers)
    assert trials[0].psnr(layers) == pytest.approx(-20 * np.log10(error), abs=0.01)
    assert trials[0].psnr(()) == np.inf
