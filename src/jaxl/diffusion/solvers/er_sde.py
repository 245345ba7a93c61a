"""ER-SDE-Solver, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.multistep import growing_orders
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.spacing import Levels, euler_levels

ORDER = 3
POINTS = 200  # of the sums that stand for integrals


def er_sde(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Cui et al. 2023 (arXiv:2309.06169), algorithm 3: of orders that grow to 3, in estimates of the image.

    The noise is that of the paper's `SDE_5`, as in the authors' code and ComfyUI's `er_sde`.
    """
    here, there = levels.sigmas[:-1], levels.sigmas[1:]
    order = growing_orders(np.append(False, here[1:] != here[:-1]), ORDER)
    order = np.where(there > 0, order, 1)
    share = _scaled(there) / _scaled(here)
    step = there - here
    ends = np.where(there > 0, there, here)
    width = (here - ends) / POINTS
    points = ends + np.arange(POINTS)[:, None] * width
    slope = step + _scaled(there) * (width / _scaled(points)).sum(0)
    bend = step**2 / 2 + _scaled(there) * (width * (points - here) / _scaled(points)).sum(0)

    # what those weigh as differences of estimates
    one = np.where(order > 1, np.append(1.0, here[:-1] - here[1:]), 1.0)
    before = np.append(1.0, one[:-1])
    slope = np.where(order > 1, -slope / one, 0.0)
    bend = np.where(order > 2, -2 * bend / (one + before), 0.0)
    return pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        x_x=share,
        x_d=1 - share + slope - bend / one,
        x_h1=-slope + bend / one + bend / before,
        x_h2=-bend / before,
        x_noise=randomness.s_noise * np.sqrt(np.maximum(there**2 - (here * share) ** 2, 0)),
        push_d=1,
    )


def _scaled(sigmas: np.ndarray) -> np.ndarray:
    return sigmas * (np.exp(sigmas**0.3) + 10)


SOLVERS = (Solver("er_sde", er_sde, euler_levels),)
