"""Gradient estimation, along slopes, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
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


SOLVERS = (Solver("gradient_estimation", gradient_estimation, euler_levels, flows=True),)
