"""UniPC, on latents of unit variance (EDM's: `image + sigma * noise`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import COLUMNS, MIXED, Table, pack, precondition
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.ddim import begun_above
from jaxl.diffusion.solvers.multistep import growing_orders, latent_scales
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import RESULT_TIME, Levels, multistep_levels


def unipc(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8: UniC after each call of the network, then UniP.

    A row corrects the latents with the estimate it has just made of them, and goes on from there; `saved` holds the
    corrected latents. With `predict_x0` off, noises are extrapolated in place of images. `disable_corrector` lists
    steps of the whole schedule after which nothing is corrected.
    """
    ratios = levels.sigmas
    alphas, sigmas, init_scale = latent_scales(config.noise, ratios)
    decay = ratios[1:] / ratios[:-1]
    h = -np.log(np.where(decay > 0, decay, 1.0))  # steps in log-SNR / 2; 0 for the last to no noise, which has order 1
    orders = _orders(config, h)
    if config.predict_x0:
        kept, reach, scale, rate = sigmas[1:] / sigmas[:-1], alphas[1:] * (1 - decay), alphas[1:], -h
        push_x, push_d = np.zeros_like(h), np.ones_like(h)
    else:
        kept, scale, rate = alphas[1:] / alphas[:-1], sigmas[1:], h
        reach = sigmas[1:] - kept * sigmas[:-1]
        push_x, push_d = 1 / sigmas[:-1], -alphas[:-1] / sigmas[:-1]
    predictor, corrector = _weights(h, rate, orders, config.solver_type)
    predictor, corrector = -scale * predictor, -scale * corrector

    # the corrector of a row does the step before it again, for which h1 is the estimate at the start
    index = levels.total - h.size + np.arange(h.size)
    corrects = ~np.isin(index - 1, config.disable_corrector) & (np.arange(h.size) > 0)

    def step_before(values: np.ndarray) -> np.ndarray:
        return np.where(corrects, np.append(0.0, values[:-1]), 0.0)

    corrected = {
        "x": np.where(corrects, 0.0, 1.0),
        "saved": step_before(kept),
        "estimate": step_before(corrector[2]),
        "h1": step_before(reach - corrector.sum(0)),
        "h2": step_before(corrector[0]),
        "h3": step_before(corrector[1]),
    }
    predicted = {term: kept * value for term, value in corrected.items()}
    predicted["estimate"] += reach - predictor.sum(0)
    predicted["h1"] += predictor[0]
    predicted["h2"] += predictor[1]

    def columns(target: str, terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        estimate = terms.pop("estimate")
        terms["x"] = terms["x"] + estimate * push_x
        return {f"{target}_d": estimate * push_d, **{f"{target}_{term}": value for term, value in terms.items()}}

    return pack(
        timesteps=levels.times,
        init_scale=init_scale,
        alphas=alphas,
        sigmas=sigmas,
        **precondition(config.noise, alphas[:-1], sigmas[:-1]),
        **columns("x", predicted),
        **columns("saved", corrected),
        push_x=push_x,
        push_d=push_d,
    )


def unipc_comfyui(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """ComfyUI's `uni_pc`: order 3, to sigma 0.001 in place of 0, where the image's scale is taken off the result."""
    sigmas = np.append(levels.sigmas[:-1], max(levels.sigmas[-1], 0.001))
    table = unipc(config, replace(levels, sigmas=sigmas), randomness)
    scale = table.alphas[-1]
    rows = table.rows.copy()
    rows[table.used - 1, [COLUMNS.index(f"x_{term}") for term in MIXED]] /= scale
    alphas, sigmas = (np.append(of[:-1], of[-1] / scale) for of in (table.alphas, table.sigmas))
    return replace(table, rows=rows, alphas=alphas, sigmas=sigmas)


def unipc_a1111(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """A1111's UniPC, by `a1111_levels`: a picture has the noise of the timestep before the first, as with DDIM."""
    table = unipc(config, levels, randomness)
    return begun_above(config.noise, levels, table, levels.stride) if isinstance(levels, A1111Levels) else table


@dataclass(frozen=True)
class A1111Levels(Levels):
    """Even timesteps, fractional, down to 0, with interpolated `logs` [T] of the signal's share of the variance.

    A run from a picture is spaced anew, from the timestep that A1111's other samplers would begin at, which have every
    `stride`-th.
    """

    logs: np.ndarray
    stride: int

    @classmethod
    def even(cls, highest: int, steps: int, total: int, logs: np.ndarray, stride: int) -> A1111Levels:
        """So many steps from a timestep down."""
        times = np.linspace(highest, 0, steps + 1)
        sigmas = np.sqrt(np.expm1(-np.interp(times, np.arange(logs.size), logs)))
        return cls(times[:-1], sigmas, total, logs, stride)

    def from_picture(self, places: Sequence[int]) -> Levels:
        steps = len(places)
        return self.even((steps - 1) * self.stride + RESULT_TIME, steps, self.total, self.logs, self.stride)


def a1111_levels(config: SchedulerConfig, steps: int) -> Levels:
    """As many steps as A1111's other samplers count timesteps, 31 for 30, from the highest down."""
    logs = -np.log1p(config.noise.sigmas() ** 2)
    stride = logs.size // steps
    total = -(-logs.size // stride)
    return A1111Levels.even(logs.size - 1, total, total, logs, stride)


def _orders(config: SchedulerConfig, h: np.ndarray) -> np.ndarray:
    """The order of each step, [n]: it grows from 1 at the start and falls to 1 at the end."""
    orders = growing_orders(np.append(False, h[:-1] > 0), config.solver_order or 2)
    if config.lower_order_final:
        orders = np.minimum(orders, np.arange(h.size, 0, -1))
    return np.where(h > 0, orders, 1)


def _weights(
    h: np.ndarray, rate: np.ndarray, orders: np.ndarray, solver_type: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a step of UniP weighs the two estimates before its start, [2, n], and UniC those and its end's, [3, n].

    An estimate counts as its difference from that at the start. `h` and `rate`, which is h or -h, are [n].
    """
    before = np.append(0.0, h[:-1])
    past = -np.stack([before, before + np.append(0.0, before[:-1])], axis=1) / np.where(h > 0, h, 1.0)[:, None]
    safe = np.where(h > 0, rate, 1.0)
    # k! times phi_{k+1} of the paper
    first = np.expm1(safe) / safe - 1
    second = first / safe - 1 / 2
    third = second / safe - 1 / 6
    phis = np.stack([first, 2 * second, 6 * third], axis=1)
    # with a single difference the paper takes half of B(h)
    half = (rate if solver_type == "bh1" else np.expm1(rate)) / 2

    def solve(nodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The weights [rows, k] that are exact for polynomials, of differences at `nodes` [rows, k]."""
        k = nodes.shape[1]
        if k == 1:
            return half[rows, None] / nodes
        return np.linalg.solve(nodes[:, None] ** np.arange(k)[:, None], phis[rows, :k, None])[..., 0] / nodes

    predictor, corrector = np.zeros((2, h.size)), np.zeros((3, h.size))
    for order in range(1, orders.max() + 1):
        rows = np.flatnonzero(orders == order)
        nodes = past[rows, : order - 1]
        if order > 1:
            predictor[: order - 1, rows] = solve(nodes, rows).T
        weights = solve(np.append(nodes, np.ones((rows.size, 1)), axis=1), rows).T
        corrector[: order - 1, rows], corrector[2, rows] = weights[:-1], weights[-1]
    return predictor, corrector


SOLVERS = (
    Solver(
        "unipc",
        unipc,
        multistep_levels,
        finals=True,
        solver_types=("bh2", "bh1"),
        diffusers=DiffusersClass(
            "UniPCMultistepScheduler",
            options=("solver_order", "solver_type", "lower_order_final", "predict_x0", "disable_corrector"),
            fixed={
                # solver types of other classes mean this one's own
                "solver_type": ("bh2", "bh1", "midpoint", "heun", "logrho"),
                "solver_order": (2, 1, 3),
                "solver_p": (None,),
            },
        ),
        a1111="UniPC",
    ),
    Solver("unipc_bh2", unipc, multistep_levels, finals=True, options={"solver_type": "bh2"}, aliases=("uni_pc_bh2",)),
    Solver("unipc_comfyui", unipc_comfyui, multistep_levels, options={"solver_order": 3, "solver_type": "bh1"}),
    Solver("unipc_bh2_comfyui", unipc_comfyui, multistep_levels, options={"solver_order": 3, "solver_type": "bh2"}),
    Solver(
        "unipc_a1111",
        unipc_a1111,
        a1111_levels,
        custom=(),
        schedules=(),
        options={"solver_order": 3, "solver_type": "bh1"},
        a1111="UniPC",
        form_of="unipc",
    ),
)
