"""DDPM, on latents of unit variance."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.ddim import posterior_deviation, refuse_clipping, renoised, signal_shares
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, ddim_levels


def ddpm(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Ho et al. 2020 (arXiv:2006.11239), algorithm 2, between the timesteps that are visited.

    `variance_type` is the choice of section 3.2: `fixed_small` is the posterior's, `fixed_large` that of the forward
    process. The `_log` types are the same numbers (diffusers takes the root of a logarithm for `fixed_large_log`, which
    is NaN). No noise is added at the end, as in the paper; diffusers adds that of `fixed_large` unless the last
    timestep is 0.
    """
    refuse_clipping(config, "ddpm")
    here = signal_shares(config.noise, levels.times)
    there = np.append(here[1:], 1.0)
    fresh = posterior_deviation(here, there)
    large = (config.variance_type or "fixed_small").startswith("fixed_large")
    added = np.append(np.sqrt(np.maximum(1 - here / there, 0))[:-1], 0.0) if large else fresh
    return renoised(config.noise, levels, there, fresh, added=randomness.s_noise * added)


SOLVERS = (
    Solver(
        "ddpm",
        ddpm,
        ddim_levels,
        custom=("timesteps",),
        schedules=(),
        diffusers=DiffusersClass(
            "DDPMScheduler",
            defaults={"clip_sample": True},
            options=("variance_type",),
            fixed={"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")},
        ),
    ),
)
