"""Second-order solvers with a call of the network half way through the step, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import ancestral, churned, start_scale
from jaxl.diffusion.solvers.solver import LATENT_BETAS, DiffusersClass, Solver
from jaxl.diffusion.solvers.two_rows import pack_two_rows, safe, to_level
from jaxl.diffusion.spacing import Levels, euler_levels, kdpm2_levels


def dpm2(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver-2, Lu et al. 2022 (arXiv:2206.00927), algorithm 1, as k-diffusion's `sample_dpm_2` has it.

    The slope at the middle, in log sigma, of each step takes it to its end. Churn is that of `euler`.
    """
    raised, fresh = churned(config, levels, randomness)
    here, there = raised.sigmas[:-1], levels.sigmas[1:]
    middle = np.sqrt(here * there)
    slope = (there - here) / safe(middle)
    return pack_two_rows(
        config,
        raised,
        middle=middle,
        init_scale=start_scale(config, levels, fresh),
        first=to_level(here, middle),
        second={"x_saved": 1.0, "x_x": slope, "x_d": -slope, "x_noise": np.append(fresh[1:], 0.0)},
    )


def dpm2_ancestral(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`dpm2` to a lower level than the next, then fresh noise: k-diffusion's `sample_dpm_2_ancestral`."""
    here = levels.sigmas[:-1]
    down, up = ancestral(here, levels.sigmas[1:], randomness.eta)
    middle = np.sqrt(here * down)
    slope = (down - here) / safe(middle)
    return pack_two_rows(
        config,
        levels,
        middle=middle,
        init_scale=start_scale(config, levels),
        first=to_level(here, middle),
        second={"x_saved": 1.0, "x_x": slope, "x_d": -slope, "x_noise": up * randomness.s_noise},
    )


def dpmpp_2s_ancestral(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver++(2S), Lu et al. 2022 (arXiv:2211.01095), algorithm 1, to a lower level than the next, then noise.

    This is k-diffusion's `sample_dpmpp_2s_ancestral`. The estimate at the middle takes each step to its end.
    """
    here = levels.sigmas[:-1]
    down, up = ancestral(here, levels.sigmas[1:], randomness.eta)
    middle = np.sqrt(here * down)
    return pack_two_rows(
        config,
        levels,
        middle=middle,
        init_scale=start_scale(config, levels),
        first=to_level(here, middle),
        second={"x_saved": down / here, "x_d": 1 - down / here, "x_noise": up * randomness.s_noise},
    )


def dpmpp_2s_ancestral_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`dpmpp_2s_ancestral` with CFG++ (Chung et al. 2024, arXiv:2406.08070), as ComfyUI's `dpmpp_2s_ancestral_cfg_pp`.

    A step's guidance is added to its start, for both rows; the history hands the first one's unguided estimate on.
    """
    here = levels.sigmas[:-1]
    down, up = ancestral(here, levels.sigmas[1:], randomness.eta)
    middle = np.sqrt(here * down)
    first = {"x_x": middle / here, "x_d": 1.0, "x_u": -middle / here, "saved_x": 1.0, "saved_d": 1.0, "push_u": 1.0}
    second = {"x_saved": down / here, "x_h1": -down / here, "x_d": 1 - down / here, "x_noise": up * randomness.s_noise}
    both = {"push_d": 0.0, "guidance": 1.0}
    return pack_two_rows(
        config,
        levels,
        middle=middle,
        init_scale=start_scale(config, levels),
        first=first | both,
        second=second | both,
    )


SOLVERS = (
    Solver(
        "dpm2",
        dpm2,
        kdpm2_levels,
        flows=True,
        churns=True,
        diffusers=DiffusersClass("KDPM2DiscreteScheduler", defaults=LATENT_BETAS),
        a1111="DPM2",
        automatic="karras",
    ),
    Solver(
        "dpm2_a",
        dpm2_ancestral,
        kdpm2_levels,
        eta=1.0,
        diffusers=DiffusersClass("KDPM2AncestralDiscreteScheduler", defaults=LATENT_BETAS),
        a1111="DPM2 a",
        automatic="karras",
        aliases=("dpm_2_ancestral",),
    ),
    Solver(
        "dpm++2s_a",
        dpmpp_2s_ancestral,
        euler_levels,
        eta=1.0,
        follows=False,
        a1111="DPM++ 2S a",
        automatic="karras",
        aliases=("dpmpp_2s_ancestral",),
    ),
    Solver(
        "dpm++2s_a_cfg++",
        dpmpp_2s_ancestral_cfgpp,
        euler_levels,
        eta=1.0,
        follows=False,
        aliases=("dpmpp_2s_ancestral_cfg_pp",),
    ),
)
