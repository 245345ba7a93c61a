"""RES multistep, plain and ancestral, on latents `image + sigma * noise`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import ancestral, start_scale
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.solvers.two_rows import Columns, safe
from jaxl.diffusion.spacing import Levels, euler_levels


def res_multistep(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Zhang et al. 2023 (arXiv:2308.02157), the multistep form of order 2, as ComfyUI's `res_multistep` has it.

    With `eta` a step goes to a lower level and adds noise, and the estimate before counts from the lower level of its
    own step. The first step and one to no noise are Euler's.
    """
    return _rows(config, levels, randomness, _guided)


def res_multistep_cfgpp(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`res_multistep` along the unguided noise: CFG++ of Chung et al. 2024 (arXiv:2406.08070), as ComfyUI has it."""
    return _rows(config, levels, randomness, _unguided)


def _rows(config: SchedulerConfig, levels: Levels, randomness: Randomness, estimates: Callable[..., Columns]) -> Table:
    """The rows whose `estimates` are weighed by what is `kept` of x, and of the one `before`, if a step is `second`."""
    here, there = levels.sigmas[:-1], levels.sigmas[1:]
    down, up = ancestral(here, there, randomness.eta)
    kept = down / here
    way = np.log(here / safe(down))
    # how far back the estimate before is, as a share of the step
    back = np.append(0.0, np.log(safe(down[:-1]) / here[:-1]))
    second = (down > 0) & (back < 0) & (way > 0)
    share = np.divide(back, way, out=np.ones_like(way), where=second)
    line = np.divide(np.expm1(-way) + way, way, out=np.zeros_like(way), where=second)
    before = np.where(second, line / share, 0.0)
    table = pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        x_x=kept,
        x_h1=before,
        x_noise=up * randomness.s_noise,
    )
    return table.with_columns(**estimates(kept, before, second))


def _guided(kept: np.ndarray, before: np.ndarray, second: np.ndarray) -> Columns:
    return {"x_d": 1 - kept - before, "push_d": 1}


def _unguided(kept: np.ndarray, before: np.ndarray, second: np.ndarray) -> Columns:
    """What is left of the latents is moved by the guidance, and all else is unguided but for the first step."""
    left = np.where(second, kept, 1.0)
    return {"x_d": left, "x_u": 1 - kept - before - left, "push_u": 1, "guidance": 1}


SOLVERS = (
    Solver("res_multistep", res_multistep, euler_levels, flows=True),
    Solver("res_multistep_a", res_multistep, euler_levels, eta=1.0, aliases=("res_multistep_ancestral",)),
    Solver("res_multistep_cfg++", res_multistep_cfgpp, euler_levels),
    Solver(
        "res_multistep_a_cfg++",
        res_multistep_cfgpp,
        euler_levels,
        eta=1.0,
        aliases=("res_multistep_ancestral_cfg_pp",),
    ),
)
