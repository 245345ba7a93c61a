"""Solvers that call the network twice a step: at the step's start, and again at a level in between or at its end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.spacing import Levels, told

Columns = Mapping[str, ArrayLike]


def safe(sigmas: np.ndarray) -> np.ndarray:
    """The sigmas with 1 for 0, to divide by: a step to 0 has no second row, so what comes of it is dropped."""
    return np.where(sigmas > 0, sigmas, 1.0)


def to_level(here: np.ndarray, there: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a first row: Euler's step from sigma `here` to `there`, with the start kept as `saved`."""
    return {"x_x": there / here, "x_d": 1 - there / here, "saved_x": np.ones_like(here)}


def pack_two_rows(
    config: SchedulerConfig,
    levels: Levels,
    *,
    middle: np.ndarray,
    middle_times: np.ndarray | None = None,
    init_scale: float,
    first: Columns,
    second: Columns,
) -> Table:
    """The table whose rows alternate between `first` at each level and `second` at each of `middle` [n].

    A last step to 0 has its first row alone. Every denoised estimate is pushed, unless a row says `push_d`, so in a
    second row `h1` is that of the first. The network is told the middle's own timesteps unless they are given.
    """
    n = levels.times.size
    used = 2 * n - int(levels.sigmas[-1] == 0)

    def alternate(one: ArrayLike, other: ArrayLike) -> np.ndarray:
        return np.stack(np.broadcast_arrays(one, other, np.empty(n))[:2], axis=1).ravel()[:used]

    sigmas = alternate(levels.sigmas[:-1], safe(middle))
    times = told(config.noise, safe(middle)) if middle_times is None else middle_times
    columns = {name: alternate(first.get(name, 0.0), second.get(name, 0.0)) for name in {**first, **second}}
    return pack_sigmas(
        config.noise,
        timesteps=alternate(levels.times, times),
        init_scale=init_scale,
        sigmas=np.append(sigmas, levels.sigmas[-1]),
        steps=alternate(np.arange(n), np.arange(n)),
        **{"push_d": 1, **columns},
    )
