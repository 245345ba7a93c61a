"""Noise between that of two seeds, and noise of another size, as A1111 makes them of unit noise."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def blended(noise: Array, other: Array, share: Any) -> Array:
    """Return noise that is the `share` of the way to another, both [..., H, W, C], along a great circle.

    Each column of each channel is a vector (Shoemake 1985, "Animating rotation with quaternion curves"). Where they
    point the same way, the line between them is taken, from the other end, as A1111 and SwarmUI do.
    """
    xp: Any = jnp if isinstance(noise, jax.Array) else np
    one, two = (a / xp.sqrt((a * a).sum(-3, keepdims=True)) for a in (noise, other))
    cosine = (one * two).sum(-3, keepdims=True)
    angle = xp.arccos(xp.clip(cosine, -1, 1))
    whole = xp.sin(angle)
    turned = xp.sin((1 - share) * angle) * noise + xp.sin(share * angle) * other
    turned = turned / xp.where(whole == 0, 1, whole)
    straight = share * noise + (1 - share) * other
    return xp.where(cosine.mean((-3, -2, -1), keepdims=True) > 0.9995, straight, turned)


def pasted(noise: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Return noise [H, W, C] in whose middle lies that of another size; of a larger one, its middle."""
    result = under.copy()
    places, parts = [], []
    for size, own in zip(under.shape, noise.shape, strict=True):
        before = (size - own) // 2  # also of negative numbers, as Python rounds them
        length = own + 2 * min(before, 0)
        places.append(slice(max(before, 0), max(before, 0) + length))
        parts.append(slice(max(-before, 0), max(-before, 0) + length))
    result[tuple(places)] = noise[tuple(parts)]
    return result
