"""DEIS, on latents of unit variance (EDM's: `image + sigma * noise`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack, precondition
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.lms import adams_bashforth, ending_clean
from jaxl.diffusion.solvers.multistep import growing_orders, latent_scales
from jaxl.diffusion.solvers.slopes import pack_slopes
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, euler_levels, multistep_levels

COMFYUI_ORDER = 3


def deis_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' DEISMultistepScheduler, which always ends at the lowest trained level."""
    return multistep_levels(replace(config, final_sigmas_type="sigma_min"), steps)


def deis(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Zhang and Chen 2022 (arXiv:2204.13902), algorithm 1 with rho-AB weights in log rho; the history holds noises."""
    ratios = levels.sigmas
    alphas, sigmas, init_scale = latent_scales(config.noise, ratios)
    weights = _weights(ratios, _orders(config, levels))
    push_x, push_d = 1 / sigmas[:-1], -alphas[:-1] / sigmas[:-1]
    return pack(
        timesteps=levels.times,
        init_scale=init_scale,
        alphas=alphas,
        sigmas=sigmas,
        **precondition(config.noise, alphas[:-1], sigmas[:-1]),
        x_x=alphas[1:] * (1 / alphas[:-1] + weights[0] * push_x),
        x_d=alphas[1:] * weights[0] * push_d,
        x_h1=alphas[1:] * weights[1],
        x_h2=alphas[1:] * weights[2],
        push_x=push_x,
        push_d=push_d,
    )


def deis_comfyui(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """ComfyUI's `deis`: order 3, its polynomials in a time that is linear in beta, on latents `image + sigma * noise`.

    That is the form "tab" of https://github.com/zju-pi/diff-sampler, whose sums of 10,000 terms are integrals here. A
    step to no noise takes the estimate.
    """
    weights = ending_clean(levels.sigmas, adams_bashforth(levels.sigmas, COMFYUI_ORDER, _linear_beta_time, points=8))
    return pack_slopes(
        config,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        weights=weights,
    )


def _linear_beta_time(sigmas: np.ndarray) -> np.ndarray:
    """The times at which betas that grow linearly have led to these sigmas: 0.001 at 0.002, 1 at 80.

    Karras et al. 2022 (arXiv:2206.00364), table 1, has it in the column VP.
    """
    early, late = np.log1p(np.array([0.002, 80.0]) ** 2)
    rise = 2 * (early / 1e-3 - late) / (1e-3 - 1)
    base = late - rise / 2
    return (np.sqrt(base**2 + 2 * rise * np.log1p(sigmas**2)) - base) / rise


def _orders(config: SchedulerConfig, levels: Levels) -> np.ndarray:
    """The order of each step, [n]: it grows from 1 at the start, and falls again at the end of short schedules."""
    ratios = levels.sigmas
    orders = growing_orders(np.append(False, ratios[:-2] > ratios[1:-1]), config.solver_order or 2)
    lowers = config.lower_order_final and levels.total < 15
    if lowers:
        orders[-2:] = np.minimum(orders[-2:], 2)
    if lowers or ratios[-1] == 0:
        orders[-1] = 1
    return orders


def _weights(ratios: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The weights [3, n] of the noises at a step's start and at the two before it, for `ratios` [n + 1].

    They integrate over rho the polynomial, of degree `orders - 1`, in u = log(rho / rho at the start).
    """
    start, end = ratios[:-1], ratios[1:]
    way = np.log(np.where(end > 0, end / start, 1.0))
    moments = (end - start, end * (way - 1) + start, end * (way**2 - 2 * way + 2) - 2 * start)  # of 1, u and u^2
    one = np.append(0.0, np.log(start[:-1] / start[1:]))  # u at the level before, and at the one before that
    two = one + np.append(0.0, one[:-1])
    second, third = orders == 2, orders == 3

    def share(numerator: np.ndarray, denominator: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, out=np.zeros_like(start), where=where)

    latest = share(moments[1], one, second) + share(moments[2] - two * moments[1], one * (one - two), third)
    earlier = share(moments[2] - one * moments[1], two * (two - one), third)
    return np.stack([moments[0] - latest - earlier, latest, earlier])


SOLVERS = (
    Solver(
        "deis",
        deis,
        deis_levels,
        diffusers=DiffusersClass(
            "DEISMultistepScheduler",
            options=("solver_order", "lower_order_final"),
            fixed={
                "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
                # solver types of other classes mean this one's own
                "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
                "solver_order": (2, 1, 3),
            },
        ),
    ),
    Solver("deis_comfyui", deis_comfyui, euler_levels, flows=True),
)
