"""Heun's method, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import churned, start_scale
from jaxl.diffusion.solvers.slopes import from_row_to_row, pack_slopes
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


def heunpp2(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Heun++: the slopes of a step's start and of Euler's next two levels, weighed by these (ComfyUI's `heunpp2`).

    The last step but one has two rows and the last one has one. Churn is that of `euler`.
    """
    raised, fresh = churned(config, levels, randomness)
    sigmas, n = levels.sigmas, levels.times.size
    at, times, weights, noise = [], [], [], np.append(fresh[1:], 0.0)
    counts = np.minimum(3, np.arange(n, 0, -1))
    for i, count in enumerate(counts):
        start, later = raised.sigmas[i], sigmas[i + 1 : i + count]
        shares = later / (count * sigmas[0])
        ways = np.tril(np.tile(np.append(np.diff(later, prepend=start), 0.0), (count, 1)))
        ways[-1] = (sigmas[i + 1] - start) * np.append(1 - shares.sum(), shares)
        weights.append(from_row_to_row(ways))
        at += [start, *later]
        times += [raised.times[i], *levels.times[i + 1 : i + count]]
    steps = np.repeat(np.arange(n), counts)
    return pack_slopes(
        config,
        timesteps=np.array(times),
        init_scale=start_scale(config, levels, fresh),
        sigmas=np.array([*at, sigmas[-1]]),
        steps=steps,
        weights=np.concatenate(weights).T,
        noise=np.where(np.diff(steps, append=n), noise[steps], 0.0),
    )


SOLVERS = (
    Solver(
        "heun",
        heun,
        euler_levels,
        flows=True,
        churns=True,
        diffusers=DiffusersClass("HeunDiscreteScheduler", defaults=LATENT_BETAS),
        a1111="Heun",
        aliases=("FlowMatchHeunDiscreteScheduler",),
    ),
    Solver("heunpp2", heunpp2, euler_levels, flows=True, churns=True, rows=3, a1111="HeunPP2"),
)
