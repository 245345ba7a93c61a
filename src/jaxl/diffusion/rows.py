"""A scheduler as a table of rows, and what the columns mean.

One row is one call of the network F and one update of the latents x:

    D           = c_skip * x + c_out * F(c_in * x, t)          the denoised estimate, and U without guidance
    x', saved'  = M (x, saved, D, h1, h2, h3, noise)           M is 2x7: the columns `x_*` and `saved_*`; x' has x_u * U
    h1, h2, h3  = push_x * x + push_d * D + push_u * U, h1, h2, with the x from before the update

h1 to h3 are the three previous entries of the history, the latest first; `saved` is a second image that a scheduler may
keep for later rows, such as the start of a two-row step. Both start as zeros. A row that pushes nothing leaves the
history as it is.

Thirteen more columns belong to the request rather than to the scheduler. Where an image's mask keeps the picture that
was given, x' is replaced by `known_image * picture + known_noise * noise`. `guidance` and `pag` are the scales of
classifier-free guidance and of that by a perturbed branch at this row, `perp_neg` that of a perpendicular negative
prompt, 0 for a plain one, and `rescale` is guidance_rescale. Where `shallow` is 1 the network may go by what it kept of
an earlier row, where it is 0 it goes by nothing but x. A scheduler may leave factors in `guidance`, by which the scale
that is asked for is multiplied: see `Table.factors`. SHAPING are the numbers of kinds of guidance that are more than a
sum: see `jaxl.run.guidance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from jaxl.diffusion.schedule import NoiseSchedule
from jaxl.errors import CheckpointError

MIXED = ("x", "saved", "d", "h1", "h2", "h3", "noise")
# with what they are where nothing is asked for
SHAPING: Mapping[str, float] = {
    "apg_eta": 1.0,
    "apg_threshold": 0.0,
    "apg_momentum": 0.0,
    "cfg_zero": 0.0,
    "mimic_scale": 0.0,
    "mimic_percentile": 1.0,
}
COLUMNS = (
    *("t", "c_in", "c_skip", "c_out"),
    *(f"x_{term}" for term in MIXED),
    *(f"saved_{term}" for term in MIXED),
    *("push_x", "push_d"),
    *("x_u", "push_u"),
    *("known_image", "known_noise"),
    *("guidance", "rescale", "pag", "perp_neg", "shallow"),
    *SHAPING,
)
# 1000 steps of a scheduler with two rows a step fit; a fixed capacity means that no number of steps recompiles
MAX_ROWS = 2048


@dataclass(frozen=True)
class Table:
    """A scheduler's rows and how to begin.

    `rows` is [MAX_ROWS, len(COLUMNS)] float32, zero after the first `used`. The latents start as `init_scale` times
    unit noise. `timesteps` [used] float32 are what the network is told, `steps` [used] which of the user's steps each
    row belongs to, counted from 0. At the start of row i the latents stand for `alphas[i] * image + sigmas[i] * noise`
    (both [used + 1] float64; the last entry is the result).
    """

    rows: np.ndarray
    used: int
    init_scale: float
    timesteps: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray
    steps: np.ndarray

    @property
    def noisy(self) -> np.ndarray:
        """Whether each row adds noise, bool [used]."""
        return np.any(self.rows[: self.used, [COLUMNS.index("x_noise"), COLUMNS.index("saved_noise")]] != 0, axis=1)

    @property
    def adds_noise(self) -> bool:
        """Whether any row does."""
        return bool(self.noisy.any())

    @property
    def factors(self) -> np.ndarray:
        """What the scale of guidance is multiplied by at each row, [used]; 0 where the scheduler leaves it as it is."""
        return self.rows[: self.used, COLUMNS.index("guidance")].astype(np.float64)

    @property
    def splits(self) -> np.ndarray:
        """Whether each row knows the estimate without guidance apart, bool [used]."""
        return np.any(self.rows[: self.used, [COLUMNS.index("x_u"), COLUMNS.index("push_u")]] != 0, axis=1)

    def until(self, step: int) -> Table:
        """The rows of the steps before `step`: a run that stops there."""
        used = int(np.searchsorted(self.steps, step))
        rows = self.rows.copy()
        rows[used:] = 0
        ends = slice(None, used + 1)
        return Table(
            rows, used, self.init_scale, self.timesteps[:used], self.alphas[ends], self.sigmas[ends], self.steps[:used]
        )

    def with_columns(self, **columns: ArrayLike) -> Table:
        """The table with these columns (arrays [used] or single numbers) in place of its own."""
        rows = self.rows.copy()
        for name, values in columns.items():
            rows[: self.used, COLUMNS.index(name)] = values
        return replace(self, rows=rows)


def pack(
    *,
    timesteps: np.ndarray,
    init_scale: float,
    alphas: np.ndarray,
    sigmas: np.ndarray,
    steps: np.ndarray | None = None,
    **columns: ArrayLike,
) -> Table:
    """The table with these `columns` (arrays [used] or single numbers, by name; absent ones are 0).

    `steps` is 0, 1, 2, ... unless given. A picture that is kept has the level of each row's result, clean at the end.
    """
    used = timesteps.size
    steps = np.arange(used) if steps is None else steps
    empty = np.zeros((MAX_ROWS, len(COLUMNS)), np.float32)
    table = Table(empty, used, float(init_scale), timesteps.astype(np.float32), alphas, sigmas, steps)
    known_image, known_noise = np.append(alphas[1:-1], 1.0), np.append(sigmas[1:-1], 0.0)
    return table.with_columns(t=timesteps, known_image=known_image, known_noise=known_noise, **columns)


def pack_sigmas(
    noise: NoiseSchedule,
    *,
    timesteps: np.ndarray,
    init_scale: float,
    sigmas: np.ndarray,
    steps: np.ndarray | None = None,
    **columns: ArrayLike,
) -> Table:
    """The table for latents `image + sigma * noise`, with `sigmas` [used + 1] as `pack` has them.

    On a straight path the image's scale is `1 - sigma`, and what goes along (x - D) / sigma goes along the velocity.
    """
    alphas = noise.alphas(sigmas)
    return pack(
        timesteps=timesteps,
        init_scale=init_scale,
        alphas=alphas,
        sigmas=sigmas,
        steps=steps,
        **precondition(noise, alphas[:-1], sigmas[:-1]),
        **columns,
    )


def denoiser(prediction_type: str, alphas: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`c_skip` and `c_out` for latents `alphas * image + sigmas * noise` with alphas^2 + sigmas^2 = 1.

    Salimans and Ho 2022 (arXiv:2202.00512, section 4) list the three predictions. Raises CheckpointError where the
    noise is predicted but no signal is left, since the image cannot be found from it.
    """
    if prediction_type == "epsilon":
        if not alphas.all():
            raise CheckpointError(
                "prediction_type='epsilon' cannot start from pure noise, which rescale_betas_zero_snr=True makes of "
                "the last timestep; use `scheduler='euler'` or `timestep_spacing='leading'`"
            )
        return 1 / alphas, -sigmas / alphas
    if prediction_type == "v_prediction":
        return alphas, -sigmas
    if prediction_type == "sample":
        return np.zeros_like(alphas), np.ones_like(alphas)
    raise CheckpointError(f"prediction_type={prediction_type!r} is not supported")


def precondition(noise: NoiseSchedule, alphas: np.ndarray, sigmas: np.ndarray) -> dict[str, np.ndarray]:
    """The columns `c_in`, `c_skip` and `c_out` for latents `alphas * image + sigmas * noise` of any scale.

    Karras et al. 2022 (arXiv:2206.00364), table 1. EDM's network predicts the velocity of Salimans and Ho 2022
    (arXiv:2202.00512) on divided data, with the sign turned for `epsilon`; on a straight path it predicts noise less
    image.
    """
    if noise.flow is not None:
        return {"c_in": 1 / (alphas + sigmas), "c_skip": 1 / (alphas + sigmas), "c_out": -sigmas / (alphas + sigmas)}
    data = 1.0 if noise.edm is None else noise.edm.sigma_data
    scale = np.hypot(data * alphas, sigmas)
    kind = noise.prediction_type if noise.edm is None else "v_prediction"
    c_skip, c_out = denoiser(kind, data * alphas / scale, sigmas / scale)
    turned = noise.edm is not None and noise.prediction_type == "epsilon"
    return {"c_in": 1 / scale, "c_skip": data * c_skip / scale, "c_out": -data * c_out if turned else data * c_out}
