"""SEEDS and exponential Heun, whose steps have two or three rows, on latents `image + sigma * noise`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.solvers.two_rows import safe
from jaxl.diffusion.spacing import Levels, euler_levels, told


def seeds_2(
    config: SchedulerConfig, levels: Levels, randomness: Randomness, *, node: float = 0.5, usual: str = "phi_1"
) -> Table:
    """SEEDS-2 of Gonzalez et al. 2023 (arXiv:2305.14267), for estimates of the image: ComfyUI's `seeds_2`.

    The second row is at `node` of the step in log sigma. `solver_type` "phi_1" takes the whole step with one mixture of
    both estimates, "phi_2" integrates a line through them; `usual` is the default.
    """
    span = _spans(levels, randomness.eta)
    whole = -np.expm1(-span)
    later = whole / (2 * node) if (config.solver_type or usual) == "phi_1" else _phi_2(span) / node
    return _stages(config, levels, randomness, (0.0, node), [[whole - later, later]])


def seeds_3(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """SEEDS-3 of Gonzalez et al. 2023 (arXiv:2305.14267), for estimates of the image: ComfyUI's `seeds_3`."""
    nodes = (0.0, 1 / 3, 2 / 3)
    span = _spans(levels, randomness.eta)
    middle, end = 2 * _phi_2(span * 2 / 3), 1.5 * _phi_2(span)
    return _stages(
        config,
        levels,
        randomness,
        nodes,
        [[-np.expm1(-span * 2 / 3) - middle, middle], [-np.expm1(-span) - end, 0 * end, end]],
    )


def _spans(levels: Levels, eta: float) -> np.ndarray:
    """The steps in log sigma, stretched by their noise, [n]; 1 for one to no noise, which has a row of its own kind."""
    there = levels.sigmas[1:]
    return np.where(there > 0, (1 + eta) * np.log(levels.sigmas[:-1] / safe(there)), 1.0)


def _phi_2(span: np.ndarray) -> np.ndarray:
    """The integral of a line from 0 to 1 over the step, for estimates of the image."""
    nonzero = np.where(span > 0, span, 1.0)
    return np.where(span > 0, 1 + np.expm1(-nonzero) / nonzero, 0.0)


def _stages(
    config: SchedulerConfig,
    levels: Levels,
    randomness: Randomness,
    nodes: Sequence[float],
    ways: Sequence[Sequence[np.ndarray]],
) -> Table:
    """Steps with a row at each of `nodes`, the shares of the step in log sigma.

    `ways` are what the estimates of the rows weigh, the first one's first, [n] each, on the way from the step's start
    to each node from the third on, and to the end. The linear part and the noise of a way are carried on from row to
    row, so that a row starts from the latents of the one before and takes away what those have of the estimates.
    """
    here, there = levels.sigmas[:-1], levels.sigmas[1:]
    n, eta, rows = here.size, randomness.eta, len(nodes)
    last = there == 0
    decay = np.where(last, 0.0, safe(there) / here)
    ends = [*nodes[1:], 1.0]
    every = [[-np.expm1(np.log(np.where(last, 1.0, decay)) * nodes[1] * (1 + eta))], *ways]
    found: dict[str, np.ndarray] = {name: np.zeros((n, rows)) for name in ("x_x", "x_d", "x_h1", "x_h2", "x_noise")}
    sigmas = np.stack([here * np.where(last, 1.0, decay) ** node for node in nodes], axis=1)
    for i, (start, end) in enumerate(zip(nodes, ends, strict=True)):
        kept = decay ** ((end - start) * (1 + eta))
        own = [*every[i]]
        if i:
            own[:i] = [way - kept * before for way, before in zip(own, every[i - 1], strict=False)]
        found["x_x"][:, i] = kept
        for name, weight in zip(("x_d", "x_h1", "x_h2"), reversed(own), strict=False):
            found[name][:, i] = weight
        fresh = np.sqrt(np.maximum(1 - decay ** (2 * (end - start) * eta), 0)) * here * decay**end
        found["x_noise"][:, i] = randomness.s_noise * fresh
    found["x_d"][last, 0] = 1.0  # a step to no noise takes its first estimate
    used = np.ones((n, rows), bool)
    used[last, 1:] = False
    times = np.stack([levels.times, *(told(config.noise, sigmas[:, i]) for i in range(1, rows))], axis=1)
    return pack_sigmas(
        config.noise,
        timesteps=times[used],
        init_scale=start_scale(config, levels),
        sigmas=np.append(sigmas[used], there[-1]),
        steps=np.repeat(np.arange(n), used.sum(1)),
        **{name: values[used] for name, values in found.items()},
        push_d=1,
    )


_HEUN = partial(seeds_2, node=1.0, usual="phi_2")

SOLVERS = (
    Solver("seeds_2", seeds_2, euler_levels, eta=1.0, solver_types=("phi_1", "phi_2")),
    Solver("seeds_3", seeds_3, euler_levels, eta=1.0, rows=3),
    Solver("exp_heun_2_x0", _HEUN, euler_levels, solver_types=("phi_2", "phi_1")),
    Solver("exp_heun_2_x0_sde", _HEUN, euler_levels, eta=1.0, solver_types=("phi_2", "phi_1")),
)
