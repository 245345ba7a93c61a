"""A scheduler as a table of rows, and what the columns mean.

One row is one call of the network F and one update of the latents x:

    D           = c_skip * x + c_out * F(c_in * x, t)          the denoised estimate
    x', saved'  = M (x, saved, D, h1, h2, h3, noise)           M is 2x7: the columns `x_*` and `saved_*`
    h1, h2, h3  = push_x * x + push_d * D, h1, h2              with the x from before the update

h1 to h3 are the three previous entries of the history, the latest first; `saved` is a second image that a scheduler may
keep for later rows, such as the start of a two-row step. Both start as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jaxl.errors import CheckpointError

MIXED = ("x", "saved", "d", "h1", "h2", "h3", "noise")
COLUMNS = (
    *("t", "c_in", "c_skip", "c_out"),
    *(f"x_{term}" for term in MIXED),
    *(f"saved_{term}" for term in MIXED),
    *("push_x", "push_d"),
)
# 1000 steps of a scheduler with two rows a step fit; a fixed capacity means that no number of steps recompiles
MAX_ROWS = 2048


@dataclass(frozen=True)
class Table:
    """A scheduler's rows and how to begin.

    `rows` is [MAX_ROWS, len(COLUMNS)] float32, zero after the first `used`. The latents start as `init_scale` times
    unit noise. `timesteps` [used] float32 are what the network is told. At the start of row i the latents stand for
    `alphas[i] * image + sigmas[i] * noise` (both [used + 1] float64; the last entry is the result).
    """

    rows: np.ndarray
    used: int
    init_scale: float
    timesteps: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray


def pack(
    *, timesteps: np.ndarray, init_scale: float, alphas: np.ndarray, sigmas: np.ndarray, **columns: ArrayLike
) -> Table:
    """The table with these `columns` (arrays [used] or single numbers, by name; absent ones are 0)."""
    rows = np.zeros((MAX_ROWS, len(COLUMNS)), np.float32)
    for name, values in {"t": timesteps, **columns}.items():
        rows[: timesteps.size, COLUMNS.index(name)] = values
    return Table(rows, timesteps.size, float(init_scale), timesteps.astype(np.float32), alphas, sigmas)


def denoiser(prediction_type: str, alphas: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`c_skip` and `c_out` for latents `alphas * image + sigmas * noise` with alphas^2 + sigmas^2 = 1.

    Salimans and Ho 2022 (arXiv:2202.00512, section 4) list the three predictions. Raises CheckpointError where the
    noise is predicted but no signal is left, since the image cannot be found from it.
    """
    if prediction_type == "epsilon":
        if not alphas.all():
            raise CheckpointError(
                "prediction_type='epsilon' cannot start from pure noise, which rescale_betas_zero_snr=True makes of "
                "the last timestep; use scheduler='euler' or timestep_spacing='leading'"
            )
        return 1 / alphas, -sigmas / alphas
    if prediction_type == "v_prediction":
        return alphas, -sigmas
    if prediction_type == "sample":
        return np.zeros_like(alphas), np.ones_like(alphas)
    raise CheckpointError(f"prediction_type={prediction_type!r} is not supported")
