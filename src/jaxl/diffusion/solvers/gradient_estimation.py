"""Gradient estimation, along slopes, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.slopes import pack_slopes
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.spacing import Levels, euler_levels

GAMMA = 2.0


def gradient_estimation(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Permenter and Yuan 2023 (arXiv:2306.04848), algorithm 2: Euler along `GAMMA` slopes less `GAMMA - 1` of the last.

    The first step and one to no noise are Euler's.
    """
    step = np.diff(levels.sigmas)
    extra = np.where(levels.sigmas[1:] > 0, (GAMMA - 1) * step, 0.0)
    extra[0] = 0.0
    return pack_slopes(
        config,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        weights=np.stack([step + extra, -extra, 0 * step, 0 * step]),
    )


def gradient_estimation_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`gradient_estimation` along unguided slopes: CFG++ of Chung et al. 2024 (arXiv:2406.08070), as ComfyUI has it."""
    here, there = levels.sigmas[:-1], levels.sigmas[1:]
    extra = np.where(there > 0, (GAMMA - 1) * (there - here), 0.0)
    extra[0] = 0.0
    along = (there + extra) / here
    return pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        x_x=along,
        x_d=1,
        x_u=-along,
        x_h1=-extra,
        push_x=1 / here,
        push_u=-1 / here,
        guidance=1,
    )


SOLVERS = (
    Solver("gradient_estimation", gradient_estimation, euler_levels, flows=True),
    Solver("gradient_estimation_cfg++", gradient_estimation_cfgpp, euler_levels),
)
