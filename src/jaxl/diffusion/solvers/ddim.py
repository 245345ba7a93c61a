"""DDIM, on latents of unit variance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, denoiser, pack
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.solvers.euler import unguided_slope
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import RESULT_TIME, Levels, ddim_levels, strided_levels
from jaxl.errors import CheckpointError

A1111_SCALE = 12.5


def ddim(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Song et al. 2020 (arXiv:2010.02502), equations 12 and 16; `eta` 0 is deterministic, 1 has the noise of DDPM.

    As in diffusers a step aims at `t - T // steps`, which is not always the next timestep visited. Raises
    CheckpointError where the checkpoint asks for clipping, which is not linear and means nothing for latents.
    """
    refuse_clipping(config, "ddim")
    aims = levels.times - config.noise.num_train_timesteps // levels.total
    here = signal_shares(config.noise, levels.times)
    there = signal_shares(config.noise, aims, before_first=config.set_alpha_to_one is not False)
    fresh = randomness.eta * posterior_deviation(here, there)
    return renoised(config.noise, levels, there, fresh, added=randomness.s_noise * fresh)


def ddim_a1111(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`ddim` as A1111 has it: from each timestep to the next, and to timestep 1 at the end."""
    here, there = (signal_shares(config.noise, each) for each in (levels.times, strided_aims(levels)))
    fresh = randomness.eta * posterior_deviation(here, there)
    table = renoised(config.noise, levels, there, fresh, added=randomness.s_noise * fresh)
    return begun_above(config.noise, levels, table)


def ddim_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DDIM along the unguided noise: CFG++ of Chung et al. 2024 (arXiv:2406.08070), algorithm 2.

    The scale of guidance is divided by 12.5, so that it means about what it means without, as in A1111's "DDIM CFG++".
    """
    return _unguided(ddim(config, levels, randomness))


def ddim_cfgpp_a1111(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`ddim_cfgpp` on the timesteps of `ddim_a1111`."""
    return _unguided(ddim_a1111(config, levels, randomness))


def _unguided(table: Table) -> Table:
    table = unguided_slope(table)
    return table.with_columns(guidance=table.factors / A1111_SCALE)


def strided_aims(levels: Levels) -> np.ndarray:
    """The timestep that each step of `strided_levels` leads to, [n]."""
    return np.append(levels.times[1:], RESULT_TIME)


def begun_above(noise: NoiseSchedule, levels: Levels, table: Table, stride: int | None = None) -> Table:
    """The table of some of `strided_levels`, for a picture that has the noise of the timestep before the first one.

    So A1111 adds it, and the network is told of less. The stride is that of the levels, if it is not another one.
    """
    if levels.times.size == levels.total:
        return table
    before = levels.times[:1] + (levels.times[-1] - RESULT_TIME if stride is None else stride)
    share = signal_shares(noise, before)
    alphas, sigmas = (np.append(np.sqrt(of), own[1:]) for of, own in ((share, table.alphas), (1 - share, table.sigmas)))
    return replace(table, alphas=alphas, sigmas=sigmas)


def ddim_inverse_levels(config: SchedulerConfig, steps: int) -> Levels:
    """`ddim_levels` the other way round: those of diffusers' DDIMInverseScheduler."""
    levels = ddim_levels(config, steps)
    return Levels(levels.times[::-1], np.append(0.0, levels.sigmas[-2::-1]), steps)


def ddim_inverse(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DDIM without noise from a picture up to the latents that it would be drawn from (Song et al., section 4.3).

    A row leads from `t - T // steps` to t, and the network is told t. At the picture there is no noise to be found from
    the estimate, so the network's output stands in its place. Raises CheckpointError for one that predicts the picture.
    """
    refuse_clipping(config, "ddim_inverse")
    kind = config.noise.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise CheckpointError(f"prediction_type={kind!r} is not supported by scheduler='ddim_inverse'")
    before = levels.times - config.noise.num_train_timesteps // levels.total
    here = signal_shares(config.noise, before, before_first=config.set_alpha_to_one is not False)
    alphas, sigmas = np.sqrt(here), np.sqrt(1 - here)
    there = signal_shares(config.noise, levels.times)
    to_alphas, to_sigmas = np.sqrt(there), np.sqrt(1 - there)
    c_skip, c_out = denoiser(kind, alphas, sigmas)
    noise_x, noise_f = (0.0, 1.0) if kind == "epsilon" else (sigmas, alphas)
    return pack(
        timesteps=levels.times,
        init_scale=1.0,
        alphas=np.array([1.0, *to_alphas]),
        sigmas=np.array([0.0, *to_sigmas]),
        c_in=1,
        c_out=1,
        x_x=to_alphas * c_skip + to_sigmas * noise_x,
        x_d=to_alphas * c_out + to_sigmas * noise_f,
        push_d=1,
    )


def renoised(
    noise: NoiseSchedule,
    levels: Levels,
    there: np.ndarray,
    fresh: np.ndarray,
    *,
    added: np.ndarray,
    boundary: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 1.0),
) -> Table:
    """Rows that lead from each timestep to the share `there` of the signal, [n], by way of the denoised estimate.

    Noise of deviation `fresh` [n] takes the place of so much of the estimated noise: equation 12 of DDIM. What is added
    has the deviation `added`, which is mostly the same. `boundary` weighs the latents and the estimate in the estimate
    that is gone on from, as consistency models do.
    """
    here = signal_shares(noise, levels.times)
    alphas, sigmas = np.sqrt(here), np.sqrt(1 - here)
    direction = np.sqrt(np.maximum(1 - there - fresh**2, 0)) / sigmas
    c_skip, c_out = denoiser(noise.prediction_type, alphas, sigmas)
    return pack(
        timesteps=levels.times,
        init_scale=1.0,
        alphas=np.append(alphas, np.sqrt(there[-1])),
        sigmas=np.append(sigmas, np.sqrt(1 - there[-1])),
        c_in=1,
        c_skip=boundary[0] + boundary[1] * c_skip,
        c_out=boundary[1] * c_out,
        x_x=direction,
        x_d=np.sqrt(there) - direction * alphas,
        x_noise=added,
        push_d=1,
    )


def signal_shares(noise: NoiseSchedule, times: np.ndarray, *, before_first: bool = False) -> np.ndarray:
    """The signal's share of the variance at whole timesteps, [n], held at both ends; 1 for those `before_first`.

    A `steps_offset` leads past the end where every timestep is visited.
    """
    shares = noise.alphas_cumprod()
    at = np.asarray(times, np.int64)
    return np.where((at < 0) & before_first, 1.0, shares[np.clip(at, 0, shares.size - 1)])


def posterior_deviation(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The deviation of the latents at `there`, given the image and those at `here`, [n]: Ho et al., equation 7."""
    kept = np.divide(here, there, out=np.ones_like(here), where=there > 0)
    return np.sqrt((1 - there) / (1 - here) * np.maximum(1 - kept, 0))


def refuse_clipping(config: SchedulerConfig, name: str) -> None:
    if config.clip_sample:
        raise CheckpointError(f"clip_sample=True is not supported by scheduler={name!r}, only False")


SOLVERS = (
    Solver(
        "ddim",
        ddim,
        ddim_levels,
        eta=0.0,
        custom=(),
        schedules=(),
        diffusers=DiffusersClass("DDIMScheduler", defaults={"clip_sample": True}),
        a1111="DDIM",
    ),
    Solver(
        "ddim_inverse",
        ddim_inverse,
        ddim_inverse_levels,
        custom=(),
        schedules=(),
        diffusers=DiffusersClass("DDIMInverseScheduler", defaults={"clip_sample": True}),
    ),
    Solver("ddim_cfg++", ddim_cfgpp, ddim_levels, eta=0.0, custom=(), schedules=(), a1111="DDIM CFG++"),
    Solver("ddim_a1111", ddim_a1111, strided_levels, eta=0.0, custom=(), schedules=(), a1111="DDIM", form_of="ddim"),
    Solver(
        "ddim_cfg++_a1111",
        ddim_cfgpp_a1111,
        strided_levels,
        eta=0.0,
        custom=(),
        schedules=(),
        a1111="DDIM CFG++",
        form_of="ddim_cfg++",
    ),
)
