from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.diffusion.loop import Row, advance, init_slots
from jaxl.diffusion.noise import image_key
from jaxl.diffusion.rows import COLUMNS, MAX_ROWS, MIXED, Table
from jaxl.diffusion.schedule import EDM, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.schedulers import SCHEDULERS, SOLVERS
from jaxl.diffusion.spacing import (
    karras_sigmas,
    sigma_to_timestep,
    spread_timesteps,
    strided_levels,
    timestep_to_sigma,
)
from jaxl.diffusion.tables import build_table, scheduler_name
from jaxl.errors import CheckpointError, InputError

SDXL = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CONFIG = SchedulerConfig(noise=SDXL, timestep_spacing="leading", steps_offset=1)
EDM_CONFIG = SchedulerConfig(NoiseSchedule(edm=EDM()), scheduler="edm_euler")
SPACINGS = ("leading", "linspace", "trailing")
SEVERAL = ("dpm++2m", "edm_euler", "euler", "heun", "restart", "sa_solver")


def column(table: Table, name: str) -> np.ndarray:
    return table.rows[: table.used, COLUMNS.index(name)].astype(np.float64)


def spread(spacing: str, steps: int, **options: Any) -> list[float]:
    return spread_timesteps(spacing, 1000, steps, **{"offset": 0, "points": steps, "whole": True, **options}).tolist()


def test_spacings_are_those_of_the_paper() -> None:
    # Lin et al. 2023, table 2, counted from 0
    assert spread("linspace", 10) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spread("leading", 10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert spread("leading", 10, offset=1)[0] == 901
    assert spread("trailing", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert spread("linspace", 3, whole=False) == [999, 499.5, 0]
    assert spread("linspace", 2, points=3) == [999, 500]


@pytest.mark.parametrize("steps", [61, 103, 499, 998])
def test_trailing_never_visits_a_timestep_before_the_first(steps: int) -> None:
    times = spread("trailing", steps)
    assert len(times) == steps
    assert min(times) >= 0


def test_karras_sigmas_are_equation_5() -> None:
    sigmas = karras_sigmas(14.6, 0.03, 5)
    wanted = [(14.6 ** (1 / 7) + i / 4 * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7 for i in range(5)]
    np.testing.assert_allclose(sigmas, wanted, rtol=1e-12)


def test_a_timestep_s_sigma_leads_back_to_it() -> None:
    trained, times = SDXL.sigmas(), np.array([999.0, 500, 1, 0])
    np.testing.assert_allclose(sigma_to_timestep(timestep_to_sigma(times, trained), trained), times, atol=1e-9)
    np.testing.assert_array_equal(sigma_to_timestep(np.array([99.0, 0.001]), trained), [999, 0])


def config_for(scheduler: str) -> SchedulerConfig:
    return EDM_CONFIG if scheduler.startswith("edm") else CONFIG


def simulate(table: Table, x: Any, estimate: Callable[[int, Any], Any], noise: Callable[[int], Any]) -> list[Any]:
    """The latents before each row and at the end, from `x`; `estimate(row, x)` is the network's, guided or not."""
    c = {name: column(table, name) for name in COLUMNS}
    saved, history, states = 0 * x, [0 * x] * 3, [x]
    for row in range(table.used):
        d = estimate(row, x)
        terms = dict(zip(MIXED, (x, saved, d, *history, noise(row)), strict=True))
        pushes = c["push_x"][row], c["push_d"][row] + c["push_u"][row]
        if any(pushes):
            history = [pushes[0] * x + pushes[1] * d, *history[:2]]
        x, saved = (sum(c[f"{to}_{name}"][row] * term for name, term in terms.items()) for to in ("x", "saved"))
        x = x + c["x_u"][row] * d
        states.append(x)
    return states


# every solver, and every sigma schedule with some of them
NAMES = [
    *(name for name, each in SCHEDULERS.items() if each.sigma_schedule is None),
    *(name for name, each in SCHEDULERS.items() if each.sigma_schedule and each.solver.name in SEVERAL),
]


@pytest.mark.parametrize("scheduler", NAMES)
def test_every_number_of_steps_gives_finite_rows(scheduler: str) -> None:
    predictions = itertools.cycle(("epsilon", "v_prediction", "sample"))
    finals = ("zero", "sigma_min") if SCHEDULERS[scheduler].solver.finals else ("zero",)
    spacings = SPACINGS if SCHEDULERS[scheduler].sigma_schedule is None else ("leading",)
    most = min(1000, MAX_ROWS // SCHEDULERS[scheduler].solver.rows)
    counts = (1, 2, 3, 25, most - 1, most)
    for steps, spacing, zero_snr, final in itertools.product(counts, spacings, (False, True), finals):
        config = config_for(scheduler)
        if steps > config.original_inference_steps and scheduler in ("lcm", "tcd"):
            continue
        if steps == 1 and SCHEDULERS[scheduler].solver.levels is strided_levels:  # which make one less
            continue
        if config is CONFIG:
            noise = replace(SDXL, prediction_type=next(predictions), rescale_betas_zero_snr=zero_snr)
            # what counts timesteps cannot find an image in pure noise from the noise that is predicted
            if noise.prediction_type == "epsilon" and zero_snr and not SCHEDULERS[scheduler].solver.schedules:
                continue
            if noise.prediction_type == "sample" and scheduler == "ddim_inverse":  # there is no noise in a picture
                continue
            config = replace(CONFIG, noise=noise, timestep_spacing=spacing)
        table = build_table(replace(config, final_sigmas_type=final), steps, scheduler)
        assert table.rows.shape == (MAX_ROWS, len(COLUMNS))
        assert table.rows.dtype == np.float32
        assert np.isfinite(table.rows).all()
        assert not table.rows[table.used :].any()
        assert table.used == table.timesteps.size == table.steps.size
        assert table.alphas.shape == table.sigmas.shape == (table.used + 1,)
        assert (np.diff(table.steps) >= 0).all()
        assert set(table.steps) == set(range(table.steps[-1] + 1))
        if not scheduler.endswith(("ddim_uniform", "beta_comfyui", "_a1111")):  # these may have more or fewer
            assert table.steps[-1] + 1 == steps


@pytest.mark.parametrize("scheduler", NAMES)
def test_a_perfect_estimate_leads_from_each_level_to_the_next(scheduler: str) -> None:
    # latents as sums of the image, the first noise and each row's: a row must give the next level's mean and variance
    for spacing in SPACINGS if SCHEDULERS[scheduler].sigma_schedule is None else ("leading",):
        config = replace(config_for(scheduler), timestep_spacing=spacing)
        # the weights that iPNDM-v has been published with do not sum to one where steps' lengths change
        if scheduler.startswith("ipndm_v"):
            continue
        # the rows of a way up have the network's output in place of the estimate
        if scheduler == "ddim_inverse":
            continue
        # nor do PNDM's rows lead to a level of linspace, and each goes on from where the one before led
        if (scheduler, spacing) in (("plms", "linspace"), ("pndm", "linspace")):
            continue
        table = build_table(config, 20, scheduler, eta=None if SCHEDULERS[scheduler].solver.eta is None else 0.7)
        basis = np.eye(table.used + 2)
        x = table.alphas[0] * basis[0] + table.sigmas[0] * basis[1]
        states = np.array(
            simulate(table, x, lambda row, x, basis=basis: basis[0], lambda row, basis=basis: basis[2 + row])
        )
        # diffusers' DDIM aims at t - T // steps, which linspace does not visit
        skips = (scheduler.removesuffix("_cfg++"), spacing) == ("ddim", "linspace")
        visited = slice(-1, None) if skips else slice(None)
        np.testing.assert_allclose(states[visited, 0], table.alphas[visited], rtol=1e-4, atol=1e-5)
        deviation = np.sqrt((states[visited, 1:] ** 2).sum(1))
        np.testing.assert_allclose(deviation, table.sigmas[visited], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", SOLVERS)
def test_every_prediction_gives_the_same_estimate(scheduler: str, prediction: str) -> None:
    config = config_for(scheduler)
    if (config is EDM_CONFIG and prediction == "sample") or scheduler == "ddim_inverse":
        return
    table = build_table(replace(config, noise=replace(config.noise, prediction_type=prediction)), 20, scheduler)
    alphas, sigmas = table.alphas[:-1], table.sigmas[:-1]
    image, noise = 0.8, -1.3
    x = alphas * image + sigmas * noise
    data = 0.5 if config is EDM_CONFIG else 1.0
    scale = np.hypot(data * alphas, sigmas)
    np.testing.assert_allclose(column(table, "c_in"), 1 / scale, rtol=1e-6)
    velocity = (data * alphas * noise - sigmas * image / data) / scale
    predicted = {"epsilon": noise, "v_prediction": velocity, "sample": image}[prediction]
    if config is EDM_CONFIG and prediction == "epsilon":
        predicted = -velocity
    np.testing.assert_allclose(column(table, "c_skip") * x + column(table, "c_out") * predicted, image, rtol=2e-4)


def test_ddim_is_euler_in_other_variables() -> None:
    config = replace(CONFIG, steps_offset=0)
    ddim, euler = build_table(config, 20, "ddim"), build_table(config, 20, "euler")
    np.testing.assert_array_equal(ddim.timesteps, euler.timesteps)
    np.testing.assert_allclose(ddim.sigmas / ddim.alphas, euler.sigmas, rtol=1e-12)
    scale = ddim.alphas[1:] / ddim.alphas[:-1]
    np.testing.assert_allclose(column(ddim, "x_x"), column(euler, "x_x") * scale, rtol=1e-6)
    np.testing.assert_allclose(column(ddim, "x_d"), column(euler, "x_d") * ddim.alphas[1:], rtol=1e-6)
    guided = [build_table(config, 20, name).factors for name in ("ddim_cfg++", "euler_cfg++")]
    np.testing.assert_allclose(12.5 * guided[0], guided[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("noisy", "plain"),
    [("euler_a", "euler"), ("dpm++2m_sde", "dpm++2m"), ("dpm++3m_sde", "dpm++3m"), ("dpm2_a", "dpm2")],
)
@pytest.mark.parametrize("suffix", ["", "_karras"])
def test_without_noise_the_stochastic_schedulers_are_the_plain_ones(noisy: str, plain: str, suffix: str) -> None:
    quiet = build_table(CONFIG, 20, noisy + suffix, eta=0)
    kind = "heun" if noisy == "dpm++3m_sde" else None
    np.testing.assert_array_equal(quiet.rows, build_table(CONFIG, 20, plain + suffix, solver_type=kind).rows)
    assert build_table(CONFIG, 20, noisy + suffix).rows[:, COLUMNS.index("x_noise")].max() > 0.1


@pytest.mark.parametrize(
    ("scheduler", "solver", "order"),
    [
        ("euler", {}, 1),
        ("dpm++2m", {"solver_order": 1}, 1),
        ("dpm++2m", {"solver_type": "midpoint"}, 2),
        ("dpm++2m", {"solver_type": "heun"}, 2),
        ("dpm++3m", {}, 2),  # as its authors have it
        ("heun", {}, 2),
        ("dpm2", {}, 2),
        ("lms", {}, 4),
    ],
)
def test_the_error_falls_with_the_order_of_the_solver(scheduler: str, solver: dict[str, Any], order: int) -> None:
    # pictures from N(0, 1/4): the best estimate is linear, and the probability flow keeps x / deviation(x) as it is
    noise = replace(SDXL, prediction_type="sample")
    config = SchedulerConfig(noise, scheduler, "trailing", lower_order_final=False, **solver)
    variance = 0.25

    def error(steps: int) -> float:
        # a short first step, since a multistep solver begins with order 1
        table = build_table(config, None, scheduler, sigmas=[14.6, *karras_sigmas(14.5, 0.03, steps + 1)])
        alphas, sigmas = table.alphas, table.sigmas
        deviation = np.sqrt(variance * alphas**2 + sigmas**2)
        best = (variance * alphas / deviation**2)[:-1]
        final = simulate(table, deviation[0], lambda row, x: best[row] * x, lambda row: 0.0)[-1]
        return abs(final / deviation[-1] - 1)

    errors = [error(steps) for steps in (25, 50, 100)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders[-1] == pytest.approx(order, abs=0.3), errors


def test_the_ancestral_scheduler_draws_the_variance_of_the_data() -> None:
    # pictures from N(0, 1/4), one pixel each, with the exact estimate: the results must spread like them
    noise = replace(SDXL, prediction_type="sample")
    config = SchedulerConfig(noise, timestep_spacing="trailing")
    shares = jnp.asarray(noise.alphas_cumprod(), jnp.float32)

    def network(x: jax.Array, row: Row) -> jax.Array:
        share = shares[jnp.round(row["t"]).astype(jnp.int32)][:, None, None, None]
        return jnp.sqrt(share) * 0.25 / (share * 0.25 + 1 - share) * x

    names = ("euler_a", "dpm++2m_sde", "ddim", "dpm2_a", "dpm++2s_a", "dpm++sde", "dpm++3m_sde")
    tables = [build_table(config, 200, name, eta=1.0) for name in names]
    tables += [build_table(config, 200, name, s_churn=40.0) for name in ("euler", "heun", "dpm2")]
    unit = np.random.default_rng(0).standard_normal((1, 48, 48, 1), np.float32).repeat(len(tables), 0)
    slots = init_slots(
        np.stack([table.rows[:400] for table in tables]),
        np.array([table.used for table in tables]),
        np.stack([image_key(seed) for seed in range(len(tables))]),
        unit,
        np.array([table.init_scale for table in tables]),
    )
    done = jax.jit(lambda slots, n: advance(lambda x, row, _: (*[network(x, row)] * 2, None), slots, n))(slots, 400)
    np.testing.assert_allclose(np.asarray(done.latents).std(axis=(1, 2, 3)), 0.5, rtol=0.06)
    assert (
        np.abs(np.corrcoef(np.asarray(done.latents).reshape(len(tables), -1))[~np.eye(len(tables), dtype=bool)]).max()
        < 0.1
    )


def test_the_start_is_scaled_as_diffusers_scales_it() -> None:
    highest = build_table(CONFIG, 25, "euler").sigmas.max()
    assert build_table(CONFIG, 25, "euler").init_scale == pytest.approx(np.sqrt(highest**2 + 1))
    trailing = build_table(replace(CONFIG, timestep_spacing="trailing"), 25, "euler_a")
    assert trailing.init_scale == pytest.approx(14.6146, rel=1e-3)
    assert build_table(CONFIG, 25, "dpm++2m").init_scale == build_table(CONFIG, 25, "ddim").init_scale == 1


def test_an_unstated_spacing_is_the_scheduler_s_own() -> None:
    config = replace(CONFIG, timestep_spacing=None, steps_offset=0)
    assert build_table(config, 10, "euler").timesteps[0] == 999
    assert build_table(config, 10, "ddim").timesteps[0] == 900


def test_a_name_without_suffix_follows_the_checkpoint_s_sigmas() -> None:
    karras = replace(CONFIG, sigma_schedule="karras")
    np.testing.assert_array_equal(build_table(karras, 9).rows, build_table(CONFIG, 9, "euler_karras").rows)
    np.testing.assert_array_equal(build_table(karras, 9, "euler_a").rows, build_table(CONFIG, 9, "euler_a").rows)


def test_an_unknown_scheduler_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"scheduler='dpm\+\+3k': did you mean 'dpm\+\+3m'\? known: ddim, "):
        build_table(CONFIG, 20, "dpm++3k")


@pytest.mark.parametrize("steps", [0, -1, 1001, 20.0, "20", True, None])
def test_steps_out_of_range_are_refused(steps: Any) -> None:
    with pytest.raises(InputError, match=r"steps=.*must be a whole number from 1 to 1000"):
        build_table(CONFIG, steps)


def test_eta_is_refused_out_of_range_and_where_there_is_no_noise() -> None:
    with pytest.raises(InputError, match=r"eta=1\.5: must be a number from 0 to 1"):
        build_table(CONFIG, 20, "ddim", eta=1.5)
    with pytest.raises(InputError, match="scheduler 'euler' adds no noise"):
        build_table(CONFIG, 20, "euler", eta=0.5)


def test_what_a_scheduler_cannot_do_with_the_checkpoint_is_said() -> None:
    pure_noise = replace(CONFIG, noise=replace(SDXL, rescale_betas_zero_snr=True), timestep_spacing="trailing")
    with pytest.raises(CheckpointError, match="prediction_type='epsilon' cannot start from pure noise"):
        build_table(pure_noise, 20, "ddim")
    with pytest.raises(CheckpointError, match="clip_sample=True"):
        build_table(replace(CONFIG, clip_sample=True), 20, "ddim")
    with pytest.raises(CheckpointError, match="prediction_type='sample' is not supported by scheduler='ddim_inverse'"):
        build_table(replace(CONFIG, noise=replace(SDXL, prediction_type="sample")), 20, "ddim_inverse")
    with pytest.raises(CheckpointError, match="'NoScheduler' is not supported; choose one with `scheduler`: ddim"):
        build_table(replace(CONFIG, scheduler="NoScheduler"), 20)
    with pytest.raises(CheckpointError, match="not trained with EDM noise"):
        build_table(CONFIG, 20, "edm_euler")
    with pytest.raises(CheckpointError, match="EDM noise, which has no timesteps to count; use `scheduler='euler'`"):
        build_table(EDM_CONFIG, 20, "ddim")
    with pytest.raises(CheckpointError, match="'ays' is made of timesteps that a model with EDM"):
        build_table(EDM_CONFIG, 20, "euler_ays")


# what the programs' own code gives for SDXL: the first levels and the last ones
PUBLISHED = {
    "simple": (20, [14.614641, 10.904236, 8.302803, 6.442955], [0.453819, 0.341674, 0.223003, 0]),
    "turbo": (20, [14.614641, 10.904236, 8.302803, 6.442955], [0.453819, 0.341674, 0.223003, 0]),
    "sgm_uniform": (20, [14.614640, 10.907317, 8.307171, 6.447690], [0.455736, 0.343705, 0.225452, 0]),
    "ddim_uniform": (20, [11.028331, 8.390685], [0.228147, 0.041314, 0]),
    "beta_comfyui": (20, [14.614641, 13.515696, 11.542770, 9.388924], [0.291284, 0.199059, 0.111419, 0]),
    "kl_optimal": (20, [14.614641, 6.995652, 4.565035], [0.029167]),
    "kl_optimal_comfyui": (20, [14.614633, 6.807148, 4.401471], [0.029167, 0]),
    "linear_quadratic": (20, [14.614641, 14.578105, 14.541568, 14.505032], [7.190403, 5.071280, 2.674479, 0]),
    "ays_a1111": (20, [14.615, 9.397145, 6.145939, 4.685299], [0.117413, 0.059331, 0.029, 0]),
    "ays_comfyui": (10, [14.6146412293, 6.3184485287, 3.7681790315], [0.2332364134, 0.1114188177, 0]),
    "gits": (4, [14.61464119, 2.36326075, 0.92192322, 0.36617002], [0]),
}


@pytest.mark.parametrize("schedule", PUBLISHED)
def test_sigma_schedules_are_those_of_other_programs(schedule: str) -> None:
    steps, first, last = PUBLISHED[schedule]
    sigmas = build_table(CONFIG, steps, f"euler_{schedule}").sigmas
    assert sigmas.size == steps + 1
    np.testing.assert_allclose(sigmas[: len(first)], first, rtol=3e-5)
    np.testing.assert_allclose(sigmas[-len(last) :], last, rtol=3e-5)


def test_sigma_schedules_whose_steps_are_not_those_asked_for() -> None:
    assert build_table(CONFIG, 30, "euler_ddim_uniform").used == 31
    assert build_table(CONFIG, 900, "euler_beta_comfyui").used < 900
    with pytest.raises(InputError, match="steps=600: scheduler 'seeds_3_ddim_uniform' makes 999 of them"):
        build_table(CONFIG, 600, "seeds_3_ddim_uniform")


def test_sigma_schedules_of_a_range_are_for_edm_noise_too() -> None:
    table = build_table(EDM_CONFIG, 8, "euler_kl_optimal")
    np.testing.assert_allclose(table.sigmas[[0, -1]], [80, 0.002])
    np.testing.assert_allclose(np.diff(np.arctan(table.sigmas), 2), 0, atol=1e-12)


def test_sigma_schedules_are_laid_out_as_published() -> None:
    table = build_table(CONFIG, 10, "euler_ays")
    # Sabour et al. 2024, the table for SDXL
    np.testing.assert_allclose(
        table.sigmas, [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0], rtol=1e-9
    )
    np.testing.assert_allclose(table.timesteps, [999, 845, 730, 587, 443, 310, 193, 116, 53, 13], atol=0.6)
    twice = build_table(CONFIG, 20, "euler_ays")
    np.testing.assert_allclose(twice.sigmas[:-1:2], table.sigmas[:-1], rtol=1e-9)
    np.testing.assert_allclose(twice.sigmas[1], np.sqrt(14.615 * 6.315), rtol=1e-9)

    uniform = build_table(CONFIG, 10, "dpm++2m_sgm_uniform")
    np.testing.assert_allclose(uniform.timesteps, np.linspace(999, 0, 11)[:-1], rtol=1e-6)
    trained = SDXL.sigmas()
    np.testing.assert_allclose(uniform.sigmas[0] / uniform.alphas[0], trained[-1])
    middle = trained[299] ** 0.3 * trained[300] ** 0.7  # timestep 299.7
    np.testing.assert_allclose(uniform.sigmas[7] / uniform.alphas[7], middle)


@pytest.mark.parametrize("name", ["euler_uniform", "Euler a Uniform", "dpmpp_2m normal"])
def test_uniform_sigmas_are_k_diffusions(name: str) -> None:
    table = build_table(CONFIG, 20, name)
    sigmas = table.sigmas / table.alphas
    # what its `get_sigmas(20)` gives for SDXL
    np.testing.assert_allclose(sigmas[:4], [14.614640, 10.746800, 8.081519, 6.204935], rtol=1e-6)
    np.testing.assert_allclose(sigmas[-4:], [0.355545, 0.232164, 0.029167, 0], rtol=2e-5)
    np.testing.assert_allclose(table.timesteps, np.linspace(999, 0, 20), rtol=1e-6)


def test_edm_sigmas_are_equation_5_for_any_sigma_solver() -> None:
    wanted = [*karras_sigmas(80, 0.002, 12), 0]
    for scheduler in ("edm_euler", "euler", "euler_karras", "edm_dpm++2m", "dpm++2m"):
        table = build_table(EDM_CONFIG, 12, scheduler)
        np.testing.assert_allclose(table.sigmas, wanted, rtol=1e-9)
        np.testing.assert_allclose(table.timesteps, np.log(wanted[:-1]) / 4, rtol=1e-6)


def test_options_of_one_solver_do_not_reach_another() -> None:
    config = replace(CONFIG, scheduler="dpm++2m", solver_type="heun", solver_order=1)
    own = build_table(config, 20)
    np.testing.assert_array_equal(build_table(config, 20, "dpm++2m").rows, own.rows)
    assert (build_table(CONFIG, 20, "dpm++2m").rows != own.rows).any()
    other = replace(config, scheduler="euler")
    np.testing.assert_array_equal(build_table(other, 20, "dpm++2m").rows, build_table(CONFIG, 20, "dpm++2m").rows)


def test_a_solver_s_own_options_hold_unless_it_is_the_checkpoint_s() -> None:
    by_name = build_table(CONFIG, 10, "dpm++3m_sde")
    checkpoint = replace(CONFIG, scheduler="dpm++2m", solver_type="midpoint")
    np.testing.assert_array_equal(build_table(checkpoint, 10, "dpm++3m_sde").rows, by_name.rows)
    own = replace(checkpoint, scheduler="dpm++3m_sde")
    assert (build_table(own, 10).rows != by_name.rows).any()
    heun = build_table(CONFIG, 10, "dpm++2m_sde", solver_type="heun")
    np.testing.assert_array_equal(build_table(CONFIG, 10, "dpm++2m_sde_heun").rows, heun.rows)


def test_churn_raises_a_level_and_tells_the_network() -> None:
    # Karras et al. 2022, algorithm 2, with S_churn / N = 0.2 for sigmas from 1 to 10
    plain = build_table(CONFIG, 20, "euler")
    table = build_table(CONFIG, 20, "euler", s_churn=4.0, s_tmin=1.0, s_tmax=10.0, s_noise=1.0)
    inside = (plain.sigmas >= 1) & (plain.sigmas <= 10)
    np.testing.assert_allclose(table.sigmas, np.where(inside, 1.2, 1) * plain.sigmas)
    assert ((table.timesteps > plain.timesteps) == inside[:-1]).all()
    fresh = np.where(inside, np.sqrt(1.2**2 - 1), 0) * plain.sigmas
    np.testing.assert_allclose(column(table, "x_noise"), fresh[1:], rtol=1e-6)
    most = build_table(CONFIG, 20, "heun", s_churn=1000.0)
    np.testing.assert_allclose(most.sigmas[0], np.sqrt(2) * plain.sigmas[0])
    assert most.init_scale == pytest.approx(np.hypot(most.sigmas[0], 1))


def test_overrides_replace_what_the_checkpoint_says() -> None:
    trailing = build_table(replace(CONFIG, timestep_spacing="trailing", final_sigmas_type="sigma_min"), 9, "euler")
    chosen = build_table(CONFIG, 9, "euler", timestep_spacing="trailing", final_sigmas_type="sigma_min")
    np.testing.assert_array_equal(chosen.rows, trailing.rows)
    assert chosen.sigmas[-1] == SDXL.sigmas()[0]


def test_timesteps_and_sigmas_of_one_s_own_replace_the_steps() -> None:
    table = build_table(CONFIG, None, "heun", timesteps=[999, 500, 3])
    np.testing.assert_array_equal(table.timesteps, [999, 500, 500, 3, 3])
    karras = replace(CONFIG, sigma_schedule="karras")
    table = build_table(karras, 2, sigmas=np.array([14.0, 2.0, 0.5]))
    np.testing.assert_array_equal(table.sigmas, [14, 2, 0.5])
    assert scheduler_name(karras, custom=True) == "euler"


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        ("euler", {"timesteps": [3, 500]}, "timesteps=.*a list of falling numbers"),
        ("euler", {"timesteps": [500, 500]}, "timesteps=.*a list of falling numbers"),
        ("euler", {"timesteps": []}, "timesteps=.*a list of falling numbers"),
        ("euler", {"timesteps": "many"}, "timesteps='many'.*a list of falling numbers"),
        ("euler", {"timesteps": [1000, 3]}, "timesteps=.*whole numbers from 999 down to 0"),
        ("euler", {"timesteps": [3, -1]}, "timesteps=.*whole numbers from 999 down to 0"),
        ("euler", {"timesteps": [3.5, 1]}, "timesteps=.*whole numbers"),
        ("euler", {"sigmas": [14.0]}, "sigmas=.*falling numbers, the result's last"),
        ("euler", {"sigmas": [14.0, float("nan")]}, "sigmas=.*falling numbers"),
        ("euler", {"sigmas": [[14.0, 1.0]]}, "sigmas=.*falling numbers"),
        ("euler", {"sigmas": [15.0, 1.0]}, r"sigmas=.*from 14\.615 down to 0"),
        ("euler", {"sigmas": [5.0, -1.0]}, "sigmas=.*down to 0"),
        ("euler", {"sigmas": [5.0, 1.0], "timesteps": [3]}, "sigmas=.*give one of the two"),
        ("euler", {"sigmas": [5.0, 1.0], "steps": 4}, "steps=4: the sigmas make 1 steps"),
        ("euler", {"sigmas": [5.0, 1.0], "final_sigmas_type": "zero"}, "final_sigmas_type='zero'.*leave it out"),
        ("euler", {"timesteps": [5], "timestep_spacing": "leading"}, "timestep_spacing='leading'.*leave it out"),
        ("euler_karras", {"timesteps": [5]}, "'euler_karras' has sigmas of its own; use 'euler'"),
        ("ddim", {"timesteps": [5]}, "'ddim' has timesteps of its own"),
        ("euler", {"timestep_spacing": "ays", "steps": 3}, "timestep_spacing='ays': must be 'leading', 'linspace'"),
        ("euler_ays", {"timestep_spacing": "leading", "steps": 3}, "'euler_ays' has its own levels"),
        ("euler", {"final_sigmas_type": "one", "steps": 3}, "final_sigmas_type='one': must be 'zero' or 'sigma_min'"),
        ("heun", {"final_sigmas_type": "sigma_min", "steps": 3}, "'heun' has an end of its own"),
        ("lms", {"s_churn": 3, "steps": 3}, "s_churn=3: scheduler 'lms' has no churn"),
        ("euler", {"s_noise": float("inf"), "steps": 3}, "s_noise=inf: must be finite"),
        ("euler", {"solver_type": "heun", "steps": 3}, "solver_type='heun': scheduler 'euler' has one form alone"),
        ("unipc", {"solver_type": "heun", "steps": 3}, "solver_type='heun': scheduler 'unipc': must be 'bh2' or 'bh1'"),
        ("seeds_3", {"steps": 683}, "steps=683: must be a whole number from 1 to 682"),
        ("euler", {"s_tmin": "low", "steps": 3}, "s_tmin='low': must be a number of at least 0"),
    ],
)
def test_levels_and_settings_that_cannot_work_are_refused(
    scheduler: str, options: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"steps": None, "scheduler": scheduler, **options}
    with pytest.raises(InputError, match=message):
        build_table(CONFIG, **arguments)


def test_an_option_that_there_is_not() -> None:
    wrong: dict[str, Any] = {"skip": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'skip'"):
        build_table(SchedulerConfig(), 10, "euler", **wrong)
