"""The linear multistep method, on latents `image + sigma * noise`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.multistep import growing_orders
from jaxl.diffusion.solvers.slopes import pack_slopes
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, euler_levels

ORDER = 4


def lms(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Adams and Bashforth's method of order 4 with unequal steps in sigma: k-diffusion's `sample_lms`.

    The polynomial through the latest slopes (x - D) / sigma, at most four, is integrated over the step; the history
    holds slopes. diffusers keeps order 4 for a run that starts in the middle, whose earlier slopes are missing; jaxl
    begins anew.
    """
    return pack_slopes(
        config,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        weights=adams_bashforth(levels.sigmas),
    )


def lms_comfyui(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`lms` as ComfyUI has it: a step to no noise takes the estimate."""
    return pack_slopes(
        config,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        weights=ending_clean(levels.sigmas, adams_bashforth(levels.sigmas)),
    )


def adams_bashforth(
    sigmas: np.ndarray, most: int = ORDER, clock: Callable[[np.ndarray], np.ndarray] = np.copy, points: int = 2
) -> np.ndarray:
    """The weights [4, n] of the slopes at a step's start and at the three before it, for `sigmas` [n + 1].

    The order grows from 1 to `most`, also after a level that is visited twice. The polynomial is in what a `clock`
    makes of sigma; so many `points` of Gauss integrate it, of which two are exact for cubic ones in sigma itself.
    """
    n = sigmas.size - 1
    index = np.arange(n)
    order = growing_orders(np.append(False, sigmas[1:-1] != sigmas[:-2]), most)
    nodes = clock(sigmas)[np.maximum(index - np.arange(ORDER)[:, None], 0)]
    used = np.arange(ORDER)[:, None] < order
    half = np.diff(sigmas) / 2
    weights = np.zeros((ORDER, n))
    for point, size in zip(*np.polynomial.legendre.leggauss(points), strict=True):
        at = clock(sigmas[:-1] + half * (1 + point))
        for j in range(ORDER):
            others = used & (np.arange(ORDER) != j)[:, None]
            share = np.divide(at - nodes, nodes[j] - nodes, out=np.ones((ORDER, n)), where=others & used[j])
            weights[j] += np.where(used[j], size * half * share.prod(0), 0.0)
    return weights


def ending_clean(sigmas: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weights [4, n] of slopes, but Euler's for a step to no noise, which takes the estimate."""
    return np.where(sigmas[1:] > 0, weights, np.diff(sigmas) * np.eye(ORDER)[:, :1])


SOLVERS = (
    Solver("lms", lms, euler_levels, flows=True, diffusers=DiffusersClass("LMSDiscreteScheduler"), a1111="LMS"),
    Solver("lms_comfyui", lms_comfyui, euler_levels, flows=True),
)
