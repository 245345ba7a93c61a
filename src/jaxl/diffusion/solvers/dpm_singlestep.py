"""DPM-Solver++ in steps that begin anew, on latents of unit variance (EDM's: `image + sigma * noise`)."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack, precondition
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.dpm import SOLVER_TYPES
from jaxl.diffusion.solvers.multistep import latent_scales
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, multistep_levels


def dpmpp_2s(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """DPM-Solver++(2S), Lu et al. 2022 (arXiv:2211.01095), algorithm 1, or of `solver_order` 1 or 3.

    As in diffusers' DPMSolverSinglestepScheduler each level counts as a step: the first of two leads to the second by
    order 1, the second from where the first began to the next by order 2. A row takes its start out of the one before.
    """
    ratios = levels.sigmas
    alphas, sigmas, init_scale = latent_scales(config.noise, ratios)
    n = levels.times.size
    orders = _orders(config, n, ends=ratios[-1] == 0)
    logs = np.log(np.where(ratios > 0, ratios, 1.0))
    weights, start, before = np.zeros((n, 3)), 0, np.zeros(0)
    for i, order in enumerate(orders):
        # an order is reached from 1 on, and over levels that differ
        if order == 1 or i - start >= order or (np.diff(logs[start : i + 1]) == 0).any():
            start, before = i, np.zeros(0)
        way = alphas[i + 1] * _way(logs[start] - logs[start : i + 2], ratios[i + 1] == 0, config.solver_type)
        kept = sigmas[i + 1] / sigmas[i]
        weights[i, : way.size] = (way - kept * np.append(before, 0.0))[::-1]
        before = way
    return pack(
        timesteps=levels.times,
        init_scale=init_scale,
        alphas=alphas,
        sigmas=sigmas,
        **precondition(config.noise, alphas[:-1], sigmas[:-1]),
        x_x=sigmas[1:] / sigmas[:-1],
        x_d=weights[:, 0],
        x_h1=weights[:, 1],
        x_h2=weights[:, 2],
        push_d=1,
    )


def _way(nodes: np.ndarray, clean: bool, solver_type: str | None) -> np.ndarray:
    """What the estimates at `nodes` but the last weigh on the way to that, all from the first on in log-SNR / 2."""
    if clean:
        return np.ones(1)
    h, order = nodes[-1], nodes.size - 1
    whole = -np.expm1(-h)
    if order == 1 or h == 0:
        return np.append(whole, np.zeros(order - 1))
    line = 1 - whole / h  # what a line from 0 to 1 weighs
    if order == 2:
        slope = (line if solver_type == "heun" else whole / 2) * h / nodes[1]
        return np.array([whole - slope, slope])
    one, two = nodes[1] / h, nodes[2] / h
    if solver_type != "heun":
        return np.array([whole - line / two, 0.0, line / two])
    # the polynomial through all three
    bend = 2 * (0.5 - line / h)
    first = (line * two - bend) / (one * (two - one))
    second = (bend - line * one) / (two * (two - one))
    return np.array([whole - first - second, first, second])


def _orders(config: SchedulerConfig, n: int, *, ends: bool) -> np.ndarray:
    """The order of each row, [n], which lowers at the end where the result is clean or rows are left over."""
    order = config.solver_order or 2
    orders = np.arange(n) % order + 1
    if config.lower_order_final or ends or n % order:
        orders[-1] = 1
        if order == 3 and n % 3 == 0:
            orders[-2:] = 2, 1
        elif order == 3 and n % 3 == 2 and not ends:
            orders[-1] = 2
    return orders


SOLVERS = (
    Solver(
        "dpm++2s",
        dpmpp_2s,
        multistep_levels,
        finals=True,
        solver_types=SOLVER_TYPES,
        diffusers=DiffusersClass(
            "DPMSolverSinglestepScheduler",
            defaults={"lower_order_final": False},
            options=("solver_order", "solver_type", "lower_order_final"),
            fixed={
                "algorithm_type": ("dpmsolver++", "deis"),
                # solver types of other classes mean this one's own
                "solver_type": (*SOLVER_TYPES, "logrho", "bh1", "bh2"),
                "solver_order": (2, 1, 3),
            },
        ),
    ),
)
