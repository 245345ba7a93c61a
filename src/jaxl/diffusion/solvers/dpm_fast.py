"""DPM fast, along slopes, on latents `image + sigma * noise`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.sigma_schedules import uniform
from jaxl.diffusion.solvers.euler import ancestral, start_scale
from jaxl.diffusion.solvers.slopes import from_row_to_row, pack_slopes
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.spacing import Levels, told


def dpm_fast_levels(config: SchedulerConfig, steps: int) -> Levels:
    """The model's highest and lowest level, which the result stays at; those between are not visited."""
    return uniform(replace(config, final_sigmas_type="sigma_min"), steps)


def dpm_fast(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver-fast, Lu et al. 2022 (arXiv:2206.00927), section 3.3, as k-diffusion's `sample_dpm_fast` has it.

    As many calls of the network as there are levels make steps of three calls, and a last one or two of fewer, evenly
    in log sigma from the highest level to the lowest above 0, where the result stays. With `eta` each goes to a lower
    level and adds noise. A row is a step to whoever asked.
    """
    highest, lowest = levels.sigmas[0], levels.sigmas[levels.sigmas > 0][-1]
    n = levels.times.size
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    ends = np.geomspace(highest, lowest, len(orders) + 1)
    ends[-1] = lowest
    down, _ = ancestral(ends[:-1], ends[1:], randomness.eta)
    # the lowest level is the end of the way, and no step goes below it
    down = np.maximum(down, lowest)
    up = np.sqrt(np.maximum(ends[1:] ** 2 - down**2, 0))
    sigmas, weights, noise = [], [], []
    for order, here, there, fresh in zip(orders, ends[:-1], down, up, strict=True):
        at, ways = _step(order, here, there)
        sigmas += at
        weights.append(from_row_to_row(ways))
        noise += [0.0] * (order - 1) + [fresh * randomness.s_noise]
    return pack_slopes(
        config,
        timesteps=told(config.noise, np.array(sigmas)),
        init_scale=start_scale(config, levels),
        sigmas=np.array([*sigmas, lowest]),
        weights=np.concatenate(weights).T,
        noise=np.array(noise),
    )


def _step(order: int, here: float, there: float) -> tuple[list[float], np.ndarray]:
    """The levels of a step's rows, and the ways [order, order] from its start as `from_row_to_row` has them."""
    at = [here ** (1 - i / order) * there ** (i / order) for i in range(order)]
    ways = np.zeros((order, order))
    ways[:, 0] = np.array([*at[1:], there]) - here
    if order == 2:
        # the paper's weights take the whole difference of slopes, since the second row is half way
        ways[1] += np.array([-1, 1]) * (there - here)
    if order == 3:
        ways[1, :2] += np.array([-1, 1]) * -2 * at[2] * _phi(np.log(here / at[2]))
        ways[2] += np.array([-1, 0, 1]) * -1.5 * there * _phi(np.log(here / there))
    return at, ways


def _phi(h: float) -> float:
    return np.expm1(h) / h - 1


SOLVERS = (Solver("dpm_fast", dpm_fast, dpm_fast_levels, eta=0.0, custom=("sigmas",), schedules=(), a1111="DPM fast"),)
