"""The linear multistep method, on latents `image + sigma * noise`."""

from __future__ import annotations

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


def adams_bashforth(sigmas: np.ndarray) -> np.ndarray:
    """The weights [4, n] of the slopes at a step's start and at the three before it, for `sigmas` [n + 1].

    The order grows from 1, also after a level that is visited twice.
    """
    n = sigmas.size - 1
    index = np.arange(n)
    order = growing_orders(np.append(False, sigmas[1:-1] != sigmas[:-2]), ORDER)
    nodes = sigmas[np.maximum(index - np.arange(ORDER)[:, None], 0)]
    used = np.arange(ORDER)[:, None] < order
    half = np.diff(sigmas) / 2
    weights = np.zeros((ORDER, n))
    # two Gauss points integrate the cubic polynomials exactly
    for point in (-1 / np.sqrt(3), 1 / np.sqrt(3)):
        at = sigmas[:-1] + half * (1 + point)
        for j in range(ORDER):
            others = used & (np.arange(ORDER) != j)[:, None]
            share = np.divide(at - nodes, nodes[j] - nodes, out=np.ones((ORDER, n)), where=others & used[j])
            weights[j] += np.where(used[j], half * share.prod(0), 0.0)
    return weights


SOLVERS = (Solver("lms", lms, euler_levels, flows=True, diffusers=DiffusersClass("LMSDiscreteScheduler"), a1111="LMS"),)
