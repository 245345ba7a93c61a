"""Rows that go along slopes (x - D) / sigma, earlier ones out of the history, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig


def pack_slopes(
    config: SchedulerConfig,
    *,
    timesteps: np.ndarray,
    init_scale: float,
    sigmas: np.ndarray,
    weights: np.ndarray,
    steps: np.ndarray | None = None,
    noise: ArrayLike = 0.0,
) -> Table:
    """The table whose rows add `weights` [4, used] times their slope and the three before, and `noise` [used]."""
    here = sigmas[:-1]
    return pack_sigmas(
        config.noise,
        timesteps=timesteps,
        init_scale=init_scale,
        sigmas=sigmas,
        steps=steps,
        x_x=1 + weights[0] / here,
        x_d=-weights[0] / here,
        x_h1=weights[1],
        x_h2=weights[2],
        x_h3=weights[3],
        x_noise=noise,
        push_x=1 / here,
        push_d=-1 / here,
    )


def from_row_to_row(ways: np.ndarray) -> np.ndarray:
    """The weights [k, 4] for `pack_slopes` of a step's k rows.

    `ways` [k, k] are what the slopes of its rows, the first one's first, weigh on the way from its start to each row's
    end.
    """
    weights = np.zeros((len(ways), 4))
    for row, way in enumerate(np.diff(ways, axis=0, prepend=0.0)):
        weights[row, : row + 1] = way[row::-1]
    return weights
