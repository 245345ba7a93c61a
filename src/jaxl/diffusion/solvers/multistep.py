"""What the multistep solvers share."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.schedule import NoiseSchedule


def growing_orders(moved: np.ndarray, most: int) -> np.ndarray:
    """The order of each step, [n], from 1 up to `most`; it begins anew where the step before has not `moved`.

    With almost every timestep visited, rounding visits some twice, and no slope can be had over such a step.
    """
    index = np.arange(moved.size)
    return np.minimum(index - np.maximum.accumulate(np.where(moved, 0, index)) + 1, most)


def latent_scales(noise: NoiseSchedule, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The latents' `alphas` and `sigmas` at noise levels `sigmas` [n + 1], and what scales the noise to start from.

    They have unit variance; EDM's are `image + sigma * noise`.
    """
    if noise.edm is not None:
        return np.ones_like(sigmas), sigmas, float(np.hypot(sigmas[0], 1))
    alphas = 1 / np.hypot(sigmas, 1)
    return alphas, sigmas * alphas, 1.0
