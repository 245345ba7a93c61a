"""DPM++ SDE, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import ancestral, start_scale
from jaxl.diffusion.solvers.solver import LATENT_BETAS, DiffusersClass, Solver
from jaxl.diffusion.solvers.two_rows import pack_two_rows, to_level
from jaxl.diffusion.spacing import Levels, euler_levels


def dpmpp_sde(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """k-diffusion's `sample_dpmpp_sde` and diffusers' DPMSolverSDEScheduler: DPM-Solver++(2S) with noise of an SDE.

    The solver is Lu et al. 2022 (arXiv:2211.01095), algorithm 1. The noises of a step's two rows are increments of one
    Brownian path over sigma, from the step's start to its middle and to its end, so they share the way to the middle.
    The first is found again from the latents, the start and the estimate that the first row made them of.
    """
    here, there = levels.sigmas[:-1], levels.sigmas[1:]
    middle = np.sqrt(here * there)
    down, up = ancestral(here, middle, randomness.eta)
    last_down, last_up = ancestral(here, there, randomness.eta)
    way = here - there
    shared = np.divide(here - middle, way, out=np.zeros_like(way), where=way > 0)  # the squared correlation
    again = np.divide(last_up * np.sqrt(shared), up, out=np.zeros_like(up), where=up > 0)
    return pack_two_rows(
        config,
        levels,
        middle=middle,
        init_scale=start_scale(config, levels),
        first={**to_level(here, down), "x_noise": up * randomness.s_noise},
        second={
            "x_x": again,
            "x_saved": (last_down - again * down) / here,
            "x_h1": -again * (1 - down / here),
            "x_d": 1 - last_down / here,
            "x_noise": last_up * np.sqrt(1 - shared) * randomness.s_noise,
        },
    )


SOLVERS = (
    Solver(
        "dpm++sde",
        dpmpp_sde,
        euler_levels,
        eta=1.0,
        brownian=True,
        diffusers=DiffusersClass("DPMSolverSDEScheduler", defaults=LATENT_BETAS),
        a1111="DPM++ SDE",
        automatic="karras",
        aliases=("dpmpp_sde_gpu",),
    ),
)
