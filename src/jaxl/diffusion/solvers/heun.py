"""Heun's method, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import churned, start_scale
from jaxl.diffusion.solvers.solver import LATENT_BETAS, DiffusersClass, Solver
from jaxl.diffusion.solvers.two_rows import pack_two_rows, safe, to_level
from jaxl.diffusion.spacing import Levels, euler_levels, told


def heun(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 2: the mean slope of a step's start and Euler's end.

    Churn is that of `euler`; diffusers' HeunDiscreteScheduler has none.
    """
    raised, fresh = churned(config, levels, randomness)
    here, there = raised.sigmas[:-1], levels.sigmas[1:]
    half = (there - here) / 2
    return pack_two_rows(
        config,
        raised,
        middle=there,
        middle_times=np.append(levels.times[1:], told(config.noise, safe(there[-1:]))),
        init_scale=start_scale(config, levels, fresh),
        first=to_level(here, there),
        second={
            "x_saved": 1 + half / here,
            "x_h1": -half / here,
            "x_x": half / safe(there),
            "x_d": -half / safe(there),
            "x_noise": np.append(fresh[1:], 0.0),
        },
    )


SOLVERS = (
    Solver(
        "heun",
        heun,
        euler_levels,
        churns=True,
        diffusers=DiffusersClass("HeunDiscreteScheduler", defaults=LATENT_BETAS),
        a1111="Heun",
    ),
)
