"""RES multistep, plain and ancestral, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import ancestral, start_scale
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.solvers.two_rows import safe
from jaxl.diffusion.spacing import Levels, euler_levels


def res_multistep(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Zhang et al. 2023 (arXiv:2308.02157), the multistep form of order 2, as ComfyUI's `res_multistep` has it.

    With `eta` a step goes to a lower level and adds noise, and the estimate before counts from the lower level of its
    own step. The first step and one to no noise are Euler's.
    """
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
    return pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        x_x=kept,
        x_d=1 - kept - before,
        x_h1=before,
        x_noise=up * randomness.s_noise,
        push_d=1,
    )


SOLVERS = (
    Solver("res_multistep", res_multistep, euler_levels, flows=True),
    Solver("res_multistep_a", res_multistep, euler_levels, eta=1.0, aliases=("res_multistep_ancestral",)),
)
