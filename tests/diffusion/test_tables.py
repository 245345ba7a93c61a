from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.diffusion.loop import advance, init_slots
from jaxl.diffusion.noise import image_key
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.spacing import karras_sigmas, sigma_to_timestep, spread_timesteps, timestep_to_sigma
from jaxl.diffusion.tables import COLUMNS, MAX_ROWS, SCHEDULERS, Table, build_table
from jaxl.errors import CheckpointError, InputError

SDXL = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CONFIG = SchedulerConfig(noise=SDXL, timestep_spacing="leading", steps_offset=1)
SPACINGS = ("leading", "linspace", "trailing")


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


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_number_of_steps_gives_finite_rows(scheduler: str) -> None:
    predictions = ("epsilon", "v_prediction", "sample")
    options = itertools.product(
        (1, 2, 3, 25, 500, 999, 1000), SPACINGS, predictions, (False, True), ("zero", "sigma_min")
    )
    for steps, spacing, prediction, zero_snr, final in options:
        if scheduler == "ddim" and prediction == "epsilon" and zero_snr:
            continue
        noise = replace(SDXL, prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
        config = replace(CONFIG, noise=noise, timestep_spacing=spacing, final_sigmas_type=final)
        table = build_table(config, steps, scheduler)
        assert table.rows.shape == (MAX_ROWS, len(COLUMNS))
        assert table.rows.dtype == np.float32
        assert np.isfinite(table.rows).all()
        assert not table.rows[steps:].any()
        assert table.used == table.timesteps.size == steps
        assert table.alphas.shape == table.sigmas.shape == (steps + 1,)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_perfect_estimate_leads_from_each_level_to_the_next(scheduler: str, spacing: str) -> None:
    # with x = alpha * image + sigma * noise, and D = h1 = image, a row must give the next level's mean and variance
    eta = None if SCHEDULERS[scheduler].eta is None else 0.7
    table = build_table(replace(CONFIG, timestep_spacing=spacing), 20, scheduler, eta=eta)
    alphas, sigmas = table.alphas, table.sigmas
    mean = column(table, "x_x") * alphas[:-1] + column(table, "x_d") + column(table, "x_h1")
    variance = (column(table, "x_x") * sigmas[:-1]) ** 2 + column(table, "x_noise") ** 2
    # diffusers' DDIM aims at t - T // steps, which linspace does not visit
    visited = slice(None) if (scheduler, spacing) != ("ddim", "linspace") else slice(-1, None)
    np.testing.assert_allclose(mean[visited], alphas[1:][visited], rtol=1e-5)
    np.testing.assert_allclose(variance[visited], sigmas[1:][visited] ** 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_prediction_gives_the_same_estimate(scheduler: str, prediction: str) -> None:
    table = build_table(replace(CONFIG, noise=replace(SDXL, prediction_type=prediction)), 20, scheduler)
    alphas, sigmas = table.alphas[:-1], table.sigmas[:-1]
    image, noise = 0.8, -1.3
    x = alphas * image + sigmas * noise
    scale = np.hypot(alphas, sigmas)
    np.testing.assert_allclose(column(table, "c_in"), 1 / scale, rtol=1e-6)
    predicted = {
        "epsilon": noise,
        "v_prediction": (alphas * noise - sigmas * image) / scale,
        "sample": image,
    }[prediction]
    np.testing.assert_allclose(column(table, "c_skip") * x + column(table, "c_out") * predicted, image, rtol=1e-4)


def test_ddim_is_euler_in_other_variables() -> None:
    config = replace(CONFIG, steps_offset=0)
    ddim, euler = build_table(config, 20, "ddim"), build_table(config, 20, "euler")
    np.testing.assert_array_equal(ddim.timesteps, euler.timesteps)
    np.testing.assert_allclose(ddim.sigmas / ddim.alphas, euler.sigmas, rtol=1e-12)
    scale = ddim.alphas[1:] / ddim.alphas[:-1]
    np.testing.assert_allclose(column(ddim, "x_x"), column(euler, "x_x") * scale, rtol=1e-6)
    np.testing.assert_allclose(column(ddim, "x_d"), column(euler, "x_d") * ddim.alphas[1:], rtol=1e-6)


@pytest.mark.parametrize(("noisy", "plain"), [("euler_a", "euler"), ("dpm++2m_sde", "dpm++2m")])
@pytest.mark.parametrize("suffix", ["", "_karras"])
def test_without_noise_the_stochastic_schedulers_are_the_plain_ones(noisy: str, plain: str, suffix: str) -> None:
    quiet = build_table(CONFIG, 20, noisy + suffix, eta=0)
    np.testing.assert_array_equal(quiet.rows, build_table(CONFIG, 20, plain + suffix).rows)
    assert build_table(CONFIG, 20, noisy + suffix).rows[:, COLUMNS.index("x_noise")].max() > 0.1


@pytest.mark.parametrize(
    ("scheduler", "solver", "order"),
    [
        ("euler", {}, 1),
        ("dpm++2m", {"solver_order": 1}, 1),
        ("dpm++2m", {"solver_type": "midpoint"}, 2),
        ("dpm++2m", {"solver_type": "heun"}, 2),
    ],
)
def test_the_error_falls_with_the_order_of_the_solver(scheduler: str, solver: dict[str, Any], order: int) -> None:
    # pictures from N(0, 1/4): the best estimate is linear, and the probability flow keeps x / deviation(x) as it is
    noise = replace(SDXL, prediction_type="sample")
    config = SchedulerConfig(
        noise, "euler", "trailing", final_sigmas_type="sigma_min", lower_order_final=False, **solver
    )
    variance = 0.25

    def error(steps: int) -> float:
        table = build_table(config, steps, scheduler + "_karras")
        alphas, sigmas = table.alphas, table.sigmas
        deviation = np.sqrt(variance * alphas**2 + sigmas**2)
        best = (variance * alphas / deviation**2)[:-1]
        x, last = deviation[0], 0.0
        for row in range(steps):
            estimate = best[row] * x
            x, last = (
                column(table, "x_x")[row] * x
                + column(table, "x_d")[row] * estimate
                + column(table, "x_h1")[row] * last,
                estimate,
            )
        return abs(x / deviation[-1] - 1)

    errors = [error(steps) for steps in (25, 50, 100)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders[-1] == pytest.approx(order, abs=0.25), errors


def test_the_ancestral_scheduler_draws_the_variance_of_the_data() -> None:
    # pictures from N(0, 1/4), one pixel each, with the exact estimate: the results must spread like them
    noise = replace(SDXL, prediction_type="sample")
    config = SchedulerConfig(noise, timestep_spacing="trailing")
    shares = jnp.asarray(noise.alphas_cumprod(), jnp.float32)

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        share = shares[jnp.round(t).astype(jnp.int32)][:, None, None, None]
        return jnp.sqrt(share) * 0.25 / (share * 0.25 + 1 - share) * x

    names = ("euler_a", "dpm++2m_sde", "ddim")
    tables = [build_table(config, 200, name, eta=1.0) for name in names]
    unit = np.random.default_rng(0).standard_normal((1, 64, 64, 1), np.float32).repeat(len(names), 0)
    slots = init_slots(
        np.stack([table.rows[:200] for table in tables]),
        np.full(len(names), 200),
        np.array([table.init_scale for table in tables]),
        np.stack([image_key(seed) for seed in range(len(names))]),
        unit,
    )
    done = jax.jit(lambda slots, n: advance(network, slots, n))(slots, 200)
    np.testing.assert_allclose(np.asarray(done.latents).std(axis=(1, 2, 3)), 0.5, rtol=0.05)
    assert np.abs(np.corrcoef(np.asarray(done.latents).reshape(len(names), -1))[~np.eye(3, dtype=bool)]).max() < 0.1


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
    karras = replace(CONFIG, use_karras_sigmas=True)
    np.testing.assert_array_equal(build_table(karras, 9).rows, build_table(CONFIG, 9, "euler_karras").rows)
    np.testing.assert_array_equal(build_table(karras, 9, "euler_a").rows, build_table(CONFIG, 9, "euler_a").rows)


def test_an_unknown_scheduler_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"scheduler='dpm\+\+_2m': did you mean 'dpm\+\+2m'\? known: ddim, "):
        build_table(CONFIG, 20, "dpm++_2m")


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
    with pytest.raises(CheckpointError, match="solver_order=3"):
        build_table(replace(CONFIG, solver_order=3), 20, "dpm++2m")
    with pytest.raises(CheckpointError, match="'PNDMScheduler' is not supported; choose one with scheduler=: ddim"):
        build_table(replace(CONFIG, scheduler="PNDMScheduler"), 20)
