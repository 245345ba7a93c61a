"""iPNDM, along slopes, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.multistep import growing_orders
from jaxl.diffusion.solvers.pndm import ADAMS
from jaxl.diffusion.solvers.slopes import pack_slopes
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.spacing import Levels, euler_levels

ORDER = 4


def ipndm(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Zhang and Chen 2022 (arXiv:2204.13902), section 4: Adams and Bashforth's weights, as if all steps were equal.

    The form over sigma is that of ComfyUI's `ipndm`. Orders grow from 1 to 4; a step to no noise takes the estimate.
    """
    return _table(config, levels, ADAMS[_orders(levels.sigmas) - 1].T)


def ipndm_v(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`ipndm` with weights that know the steps' lengths: https://github.com/zju-pi/diff-sampler, ComfyUI's `ipndm_v`.

    Its weights for orders 3 and 4 are not those that integrate the polynomial, which `lms` has.
    """
    sigmas = levels.sigmas
    order = _orders(sigmas)
    step = np.diff(sigmas)
    # the steps before, and anything where there is none: those weights are not used
    one, two, three = (np.where(order > n, np.roll(step, n), -1.0) for n in (1, 2, 3))
    first = step / one / 2
    second = (1 - step**2 / (3 * one * (one + two))) / 2
    third = (1 - step / (3 * (step + one))) / 2 + (1 - step / (2 * (step + one))) * step / (6 * (step + one + two))
    third = third * step * (step + one) * (step + one + two) / (one * (one + two) * (one + two + three))
    first, second, third = (np.where(order > n, each, 0.0) for n, each in ((1, first), (2, second), (3, third)))
    near, far = one / two, one * (one + two) / (two * (two + three))
    weights = [
        1 + first + second + third,
        -first - (1 + near) * second - (1 + near + far) * third,
        near * second + (near + far * (1 + two / three)) * third,
        -far * near * third,
    ]
    return _table(config, levels, np.stack(weights))


def _orders(sigmas: np.ndarray) -> np.ndarray:
    orders = growing_orders(np.append(False, sigmas[1:-1] != sigmas[:-2]), ORDER)
    return np.where(sigmas[1:] > 0, orders, 1)


def _table(config: SchedulerConfig, levels: Levels, weights: np.ndarray) -> Table:
    return pack_slopes(
        config,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        weights=weights * np.diff(levels.sigmas),
    )


SOLVERS = (Solver("ipndm", ipndm, euler_levels, flows=True), Solver("ipndm_v", ipndm_v, euler_levels, flows=True))
