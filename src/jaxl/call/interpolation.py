"""Latents in another size, as `torch.nn.functional.interpolate` makes them, for the upscalers that A1111 calls latent.

Each way is a matrix for either axis: which of the old places a new one is made of, and how much of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

Filter = Callable[[np.ndarray], np.ndarray]


def linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution (1981, doi:10.1109/TASSP.1981.1163711)."""
    x = np.abs(x)
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


def _scale(old: int, new: int) -> np.float32:
    return np.float32(old) / np.float32(new)


def plain(of: Filter, reach: int, old: int, new: int) -> np.ndarray:
    """Return [new, old]: the filter as wide as the old places are, of which the outermost go on beyond the edges."""
    # rounded once, as processors do that multiply and add in one: it shows in large latents
    middles = ((np.arange(new) + 0.5) * float(_scale(old, new)) - 0.5).astype(np.float32)[:, None]
    taps = np.floor(middles) + np.arange(1 - reach, reach + 1)
    weights = of(middles - taps)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1).astype(int)), weights)
    return matrix


def antialiased(of: Filter, reach: int, old: int, new: int) -> np.ndarray:
    """Return [new, old]: the filter as wide as the new places are, if these are wider; nothing is beyond the edges."""
    middles = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * _scale(old, new)
    distances = (np.arange(old) + 0.5 - middles[:, None]) / max(old / new, 1.0)
    weights = np.where(np.abs(distances) < reach, of(distances), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def nearest(offset: float, old: int, new: int) -> np.ndarray:
    """Return [new, old]: the old place at a new one's beginning, or with an offset of a half at its middle."""
    # in float32, as there: whole numbers decide otherwise for some sizes
    places = np.floor((np.arange(new, dtype=np.float32) + np.float32(offset)) * _scale(old, new)).astype(int)
    return np.eye(old)[np.minimum(places, old - 1)]


# by jaxl's names; A1111's are "Latent", "Latent (antialiased)", "Latent (bicubic)" and so on
MODES: Mapping[str, Callable[[int, int], np.ndarray]] = {
    "latent": partial(plain, linear, 1),
    "latent-antialiased": partial(antialiased, linear, 1),
    "latent-bicubic": partial(plain, partial(cubic, a=-0.75), 2),
    "latent-bicubic-antialiased": partial(antialiased, partial(cubic, a=-0.5), 2),
    "latent-nearest": partial(nearest, 0.0),
    "latent-nearest-exact": partial(nearest, 0.5),
}


def interpolated(latents: np.ndarray, mode: str, height: int, width: int) -> np.ndarray:
    """Latents [B, h, w, C] -> float32 [B, height, width, C]; `mode` is one of `MODES`."""
    down, across = (
        MODES[mode](old, new).astype(np.float32) for old, new in zip(latents.shape[1:3], (height, width), strict=True)
    )
    return np.einsum("yh,bhwc,xw->byxc", down, np.asarray(latents, np.float32), across, optimize=True)
