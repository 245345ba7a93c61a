"""Turns, ratios and counted compilations, and a workload on two devices."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxl
from jaxl.bench.measure import compilations, in_turns, measure, ratio
from jaxl.bench.workload import Spread, Stages, Workload, combinations
from jaxl.call.options import LoadOptions
from jaxl.loading import open_pipeline


def test_combinations() -> None:
    found = combinations(
        devices=[1, 2],
        sizes=[(64, 32)],
        batches=[1, 4],
        steps=[20],
        schedulers=["euler", "heun"],
        guidance_scale=5.0,
    )
    assert len(found) == 8
    assert found[0] == Workload(1, 64, 32, 1, 20, "euler", 5.0)
    assert [each.devices for each in found] == [1] * 4 + [2] * 4
    assert found[-1].images == 8
    assert found[-1].size == "64x32"


def test_turns_alternate() -> None:
    order: list[str] = []

    def runner(name: str) -> Stages:
        order.append(name)
        return Stages(float(len(order)), 1.0, 4, 0.5)

    ticks: list[None] = []
    measured = in_turns({name: lambda name=name: runner(name) for name in "ab"}, 3, lambda: ticks.append(None))
    assert "".join(order) == "ababab"
    assert len(ticks) == 3
    assert [each.total for each in measured["b"]] == [2.0, 4.0, 6.0]
    assert measured["a"][0].step == 0.25


def test_ratio_is_of_medians_and_its_range_of_turns() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 2.0, 4.0]) == Spread(2.0, 1.0, 4.5)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_compilations_are_counted() -> None:
    double = jax.jit(lambda x: x * 2.0)
    with compilations() as seen:
        double(1.0)
    assert seen
    with compilations() as seen:
        double(2.0)
    assert not seen


def test_two_devices(small: Any) -> None:
    """Parameters load once for both workloads; one image on each device is two a call."""
    mesh = jaxl.make_mesh(jax.devices()[:2])
    pipe = open_pipeline(small[0].checkpoint.source, LoadOptions(dtype=jnp.float32, mesh=mesh))
    workloads = [Workload(2, 32, 32, 1, steps, "euler", 1.0) for steps in (1, 2)]
    shown: list[tuple[str, int, int]] = []
    rows = measure({2: pipe}, workloads, warmup=1, runs=2, progress=lambda *now: shown.append(now))
    assert [row.workload for row in rows] == workloads
    for row in rows:
        assert row.images_per_s == pytest.approx(2 / row.latency_s.median)
        assert row.compilations_after_warmup == 0
        assert row.peak_memory_of == "process"
        assert row.peers == {}
    assert [each for each in shown if each[0] == "generate"] == [("generate", done, 6) for done in range(6)]
    assert sum(each[0] == "load" and each[1] == each[2] for each in shown) == 1
