from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.rows import COLUMNS, MIXED, Table
from jaxl.diffusion.schedule import EDM, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.schedulers import DIFFUSERS_CLASSES
from jaxl.diffusion.solvers.multistep import growing_orders
from jaxl.diffusion.spacing import karras_sigmas
from jaxl.diffusion.tables import build_table
from jaxl.errors import CheckpointError, InputError

SDXL = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CONFIG = SchedulerConfig(noise=SDXL, timestep_spacing="leading", steps_offset=1)
NEW = ("ddpm", "deis", "lcm", "plms", "pndm", "tcd", "unipc")


def config_for(scheduler: str, **options: Any) -> SchedulerConfig:
    return replace(CONFIG, scheduler=scheduler, **options)


def column(table: Table, name: str) -> np.ndarray:
    return table.rows[: table.used, COLUMNS.index(name)].astype(np.float64)


def simulate(table: Table, x: float, estimate: Callable[[int, float], float]) -> list[float]:
    """The latents before each row and at the end, from `x`, without noise; `estimate(row, x)` is the network's."""
    c = {name: column(table, name) for name in COLUMNS}
    saved, history, states = 0.0, [0.0] * 3, [x]
    for row in range(table.used):
        d = estimate(row, x)
        terms = dict(zip(MIXED, (x, saved, d, *history, 0.0), strict=True))
        if c["push_x"][row] or c["push_d"][row]:
            history = [c["push_x"][row] * x + c["push_d"][row] * d, *history[:2]]
        x, saved = (sum(c[f"{to}_{name}"][row] * term for name, term in terms.items()) for to in ("x", "saved"))
        states.append(x)
    return states


UNIPC_ORDERS = [
    ({"solver_type": kind, "predict_x0": images, "solver_order": order, "disable_corrector": off}, order + (not off))
    for kind, images, order, off in [
        ("bh1", True, 1, ()),
        ("bh2", True, 1, range(200)),
        ("bh1", False, 2, ()),
        ("bh2", True, 2, ()),
        ("bh1", True, 2, range(200)),
        ("bh2", False, 3, range(200)),
        ("bh2", True, 3, ()),
    ]
]


@pytest.mark.parametrize(
    ("scheduler", "solver", "order"),
    [
        *(("deis", {"solver_order": order}, order) for order in (1, 2, 3)),
        *(("unipc", *each) for each in UNIPC_ORDERS),
    ],
)
@pytest.mark.parametrize("edm", [False, True])
def test_the_error_falls_with_the_order_of_the_solver(
    scheduler: str, solver: dict[str, Any], order: int, edm: bool
) -> None:
    # pictures from N(0, 1/4): the best estimate is linear, and the probability flow keeps x / deviation(x) as it is
    noise = NoiseSchedule(edm=EDM(sigma_max=20.0)) if edm else SDXL
    config = config_for(scheduler, noise=noise, lower_order_final=False, **solver)

    def error(steps: int) -> float:
        # a short first step, since a multistep solver begins with order 1
        table = build_table(config, None, scheduler, sigmas=[14.6, *karras_sigmas(14.5, 0.03, steps + 1)])
        deviation = np.hypot(table.alphas / 2, table.sigmas)
        best = table.alphas / 4 / deviation**2
        final = simulate(table, deviation[0], lambda row, x: best[row] * x)[-1]
        return abs(final / deviation[-1] - 1)

    errors = [error(steps) for steps in (25, 50, 100)]
    assert np.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=0.3), errors


def test_orders_grow_and_begin_anew_after_a_step_that_went_nowhere() -> None:
    moved = np.array([False, True, True, True, False, True])
    assert growing_orders(moved, 3).tolist() == [1, 2, 3, 3, 1, 2]
    assert growing_orders(moved, 1).tolist() == [1] * 6


@pytest.mark.parametrize("scheduler", ["deis", "plms", "pndm", "unipc"])
def test_a_start_in_the_middle_begins_anew(scheduler: str) -> None:
    config = config_for(scheduler)
    whole, part = build_table(config, 20, scheduler), build_table(config, 20, scheduler, places=range(12, 20))
    assert part.timesteps[0] == whole.timesteps[whole.steps == 12][0]
    assert not any(column(part, f"x_{term}")[0] for term in ("saved", "h1", "h2", "h3"))
    assert part.alphas[-1] == whole.alphas[-1]
    assert column(part, "x_h1")[-2] != 0


@pytest.mark.parametrize("scheduler", ["plms", "pndm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_steps_of_several_rows_say_which_step_they_are(scheduler: str, steps: int) -> None:
    table = build_table(config_for(scheduler), steps, scheduler)
    rows = np.bincount(table.steps).tolist()
    warm = min(1 if scheduler == "plms" else 3, steps - 1)
    assert rows == [2 if scheduler == "plms" else 4] * warm + [1] * (steps - warm)


@pytest.mark.parametrize("scheduler", ["plms", "pndm"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_pndm_keeps_a_straight_line(scheduler: str, prediction: str) -> None:
    # the noise is always right, so that every mean of outputs is; `trailing` visits every level that is aimed at
    config = config_for(scheduler, noise=replace(SDXL, prediction_type=prediction), timestep_spacing="trailing")
    table = build_table(config, 20, scheduler)
    image, noise = 0.8, -1.3
    states = simulate(table, table.alphas[0] * image + table.sigmas[0] * noise, lambda row, x: image)
    wanted = table.alphas * image + table.sigmas * noise
    if prediction == "epsilon":
        np.testing.assert_allclose(states, wanted, rtol=1e-3, atol=1e-4)
    else:
        # velocities turn from level to level, and are extrapolated
        assert abs(states[-1] - wanted[-1]) < 0.05


@pytest.mark.parametrize("kind", ["fixed_large", "fixed_large_log"])
def test_ddpm_adds_the_noise_of_either_variance_but_none_at_the_end(kind: str) -> None:
    small = build_table(config_for("ddpm"), 10, "ddpm")
    large = build_table(config_for("ddpm", variance_type=kind), 10, "ddpm")
    added = column(large, "x_noise")
    np.testing.assert_allclose(added[:-1] ** 2, 1 - (small.alphas[:-2] / small.alphas[1:-1]) ** 2, rtol=1e-5)
    assert (added[:-1] > column(small, "x_noise")[:-1]).all()
    assert added[-1] == column(small, "x_noise")[-1] == 0
    np.testing.assert_array_equal(column(large, "x_x"), column(small, "x_x"))


def test_ddim_with_all_its_noise_is_ddpm() -> None:
    config = config_for("ddpm", steps_offset=0)
    ddim, ddpm = build_table(config, 10, "ddim", eta=1.0), build_table(config, 10, "ddpm")
    np.testing.assert_allclose(ddim.rows, ddpm.rows, rtol=1e-6)


@pytest.mark.parametrize("scheduler", ["lcm", "tcd"])
def test_distilled_models_visit_timesteps_of_their_distillation(scheduler: str) -> None:
    config = config_for(scheduler, original_inference_steps=40)
    assert build_table(config, 4, scheduler).timesteps.tolist() == [999, 749, 499, 249]
    assert build_table(config, 3, scheduler).timesteps.tolist() == [999, 674, 349]
    with pytest.raises(InputError, match="steps=41: must be at most 40"):
        build_table(config, 41, scheduler)
    with pytest.raises(CheckpointError, match="original_inference_steps=2000"):
        build_table(replace(config, original_inference_steps=2000), 4, scheduler)


def test_s_noise_scales_what_is_added() -> None:
    for scheduler in ("ddim", "ddpm", "lcm", "tcd"):
        eta = 0.5 if scheduler in ("ddim", "tcd") else None
        config = config_for(scheduler)
        more, plain = (build_table(config, 8, scheduler, s_noise=scale, eta=eta) for scale in (1.1, 1.0))
        np.testing.assert_allclose(column(more, "x_noise"), 1.1 * column(plain, "x_noise"), rtol=1e-6)
        np.testing.assert_array_equal(column(more, "x_x"), column(plain, "x_x"))


@pytest.mark.parametrize("solver", [{"solver_type": "bh1"}, {"predict_x0": False}, {"lower_order_final": False}])
def test_unipc_ends_at_a_clean_image_with_every_solver(solver: dict[str, Any]) -> None:
    table = build_table(config_for("unipc", solver_order=3, **solver), 6, "unipc")
    assert np.isfinite(table.rows).all()
    states = simulate(table, -1.0, lambda row, x: 0.3)
    assert states[-1] == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("scheduler", NEW)
def test_a_checkpoint_s_own_class_is_read(scheduler: str) -> None:
    raw = {"_class_name": DIFFUSERS_CLASSES[scheduler], "clip_sample": False, "skip_prk_steps": scheduler == "plms"}
    config = read_scheduler_config(json.loads(json.dumps(raw)))
    assert config.scheduler == scheduler
    np.testing.assert_array_equal(build_table(config, 9).rows, build_table(config, 9, scheduler).rows)


def test_options_of_the_class_are_read() -> None:
    raw = {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0, 1], "solver_order": 3, "solver_p": None}
    config = read_scheduler_config({**raw, "solver_type": "bh1", "predict_x0": False})
    assert hash(config)
    assert (config.disable_corrector, config.solver_type, config.predict_x0) == ((0, 1), "bh1", False)
    lcm = read_scheduler_config({"_class_name": "LCMScheduler", "original_inference_steps": 25})
    assert build_table(lcm, 25, "tcd").timesteps[1] == 959
    # what is stated for one class does not reach another
    np.testing.assert_array_equal(build_table(config, 9, "deis").rows, build_table(SchedulerConfig(), 9, "deis").rows)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 4}, "solver_order=4"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_p": {"_class_name": "DDIMScheduler"}}, "solver_p="),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"_class_name": "DEISMultistepScheduler", "thresholding": True}, "thresholding=True"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type='learned_range'"),
    ],
)
def test_options_that_jaxl_lacks_are_refused_by_name(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_scheduler_config(raw)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "lcm", "tcd"])
def test_clipping_is_refused(scheduler: str) -> None:
    with pytest.raises(CheckpointError, match=f"clip_sample=True is not supported by scheduler='{scheduler}'"):
        build_table(config_for(scheduler, clip_sample=True), 4, scheduler)
