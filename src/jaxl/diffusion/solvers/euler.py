"""Euler's method, plain and ancestral, on latents `image + sigma * noise`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import COLUMNS, Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.solver import EDM_FIXED, DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, edm_levels, euler_levels, told


def euler(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without the second-order correction.

    The noise that churn adds at a level is drawn by the row before it, and by the start for the first level. The
    network sees it, as in the paper; diffusers shows the network the latents from before.
    """
    raised, fresh = churned(config, levels, randomness)
    return _table(config, raised, levels.sigmas[1:], np.append(fresh[1:], 0.0), start_scale(config, levels, fresh))


def euler_ancestral(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Euler to a lower level than the next, then fresh noise up to it, so that variances match the forward process.

    Ancestral sampling is Ho et al. 2020 (arXiv:2006.11239), algorithm 2; in terms of sigma it is k-diffusion's
    `sample_euler_ancestral`. `eta` scales the fresh noise: 1 is ancestral sampling, 0 is `euler`.
    """
    down, up = ancestral(levels.sigmas[:-1], levels.sigmas[1:], randomness.eta)
    return _table(config, levels, down, up * randomness.s_noise, start_scale(config, levels))


def euler_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """CFG++ of Chung et al. 2024 (arXiv:2406.08070), algorithm 2: `euler` along the slope of the unguided estimate.

    `x' = D + q (x - D_negative)`, with q the share of the level that is left, is Euler's step with a scale of guidance
    that is divided by 1 - q. So it is with noise: `euler_ancestral_cfgpp`.
    """
    return unguided_slope(euler(config, levels, randomness))


def euler_ancestral_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`euler_ancestral` with the guidance of `euler_cfgpp`."""
    return unguided_slope(euler_ancestral(config, levels, randomness))


def unguided_slope(table: Table) -> Table:
    """The table of a first-order method with the factors of guidance that leave the slope unguided, as in CFG++."""
    weight = table.rows[: table.used, COLUMNS.index("x_d")]
    return table.with_columns(guidance=table.alphas[1:] / np.where(weight > 0, weight, np.inf))


def ancestral(here: np.ndarray, there: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """The level to go down to from each sigma `here`, and the noise that leads up from it to `there`, [n] each."""
    up = eta * there * np.sqrt(np.maximum(1 - (there / here) ** 2, 0))
    return np.sqrt(there**2 - up**2), up


def churned(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> tuple[Levels, np.ndarray]:
    """The levels raised by churn, with their timesteps, and the deviation of the noise that raises each, [n]."""
    sigmas = levels.sigmas[:-1]
    raised = randomness.churned(sigmas, levels.total)
    times = np.where(raised > sigmas, told(config.noise, raised), levels.times)
    fresh = randomness.s_noise * np.sqrt(raised**2 - sigmas**2)
    return replace(levels, times=times, sigmas=np.append(raised, levels.sigmas[-1])), fresh


def start_scale(config: SchedulerConfig, levels: Levels, fresh: np.ndarray | None = None) -> float:
    """What unit noise is multiplied by at the start, with the churn of the first level in it.

    diffusers starts `leading` and EDM's levels from the variance of noise and image together.
    """
    highest = levels.sigmas.max()
    together = config.noise.flow is None and (config.timestep_spacing == "leading" or config.noise.edm is not None)
    return math.hypot(highest, 1.0 if together else 0.0, 0.0 if fresh is None else fresh[0])


def _table(config: SchedulerConfig, levels: Levels, target: np.ndarray, up: np.ndarray, init_scale: float) -> Table:
    """Rows that go along (x - D) / sigma from each sigma to `target`, and then add `up` times noise."""
    here = levels.sigmas[:-1]
    return pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=init_scale,
        sigmas=levels.sigmas,
        x_x=target / here,
        x_d=1 - target / here,
        x_noise=up,
        push_d=1,
    )


SOLVERS = (
    Solver(
        "euler",
        euler,
        euler_levels,
        flows=True,
        churns=True,
        finals=True,
        diffusers=DiffusersClass("EulerDiscreteScheduler"),
        a1111="Euler",
        aliases=("FlowMatchEulerDiscreteScheduler",),
    ),
    Solver(
        "euler_a",
        euler_ancestral,
        euler_levels,
        eta=1.0,
        follows=False,  # diffusers' class has no sigma schedules, so a checkpoint's wish for one does not reach it
        diffusers=DiffusersClass("EulerAncestralDiscreteScheduler"),
        a1111="Euler a",
        aliases=("euler_ancestral",),
    ),
    Solver(
        "euler_cfg++",
        euler_cfgpp,
        euler_levels,
        flows=True,
        churns=True,
        finals=True,
    ),
    Solver(
        "euler_a_cfg++",
        euler_ancestral_cfgpp,
        euler_levels,
        eta=1.0,
        follows=False,
        aliases=("euler_ancestral_cfg_pp",),
    ),
    # models that were trained with EDM noise are spaced as Karras et al. do
    Solver(
        "edm_euler",
        euler,
        edm_levels,
        churns=True,
        finals=True,
        custom=("sigmas",),
        schedules=("exponential",),
        diffusers=DiffusersClass("EDMEulerScheduler", fixed=EDM_FIXED, edm=True),
        a1111="Euler",
        form_of="euler",
    ),
)
