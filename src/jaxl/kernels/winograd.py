"""Convolutions of 3x3 by Winograd's algorithm F(2x2, 3x3) (Lavin & Gray 2015, arXiv:1509.09308, section 4.1).

Four outputs of a tile take 16 products instead of 36. All its constants are 0, 1 or 1/2, so float32 stays as exact as
the plain sum; the larger F(4x4, 3x3) loses a digit. Weights are transformed once, when they are loaded.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxl.kernels import by_rows

# G of the paper, equation 8
WEIGHT = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def transformed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that `transformed` gives to a weight."""
    return (16, *shape[2:])


def transformed(weight: Any) -> np.ndarray:
    """A weight [3, 3, I, O] float32 -> [16, I, O], on the host; the 16 count across first, then down."""
    down = np.tensordot(WEIGHT, np.asarray(weight), (1, 0))
    return np.tensordot(WEIGHT, down, (1, 1)).reshape(transformed_shape(down.shape))


# Jitted on its own, so that layers of the same shapes are compiled once.
@jax.jit
def convolve(x: Array, weight: Array) -> Array:
    """[B, H, W, I] and a transformed weight [16, I, O] -> [B, H, W, O]: stride 1, one pixel all around, of zeros.

    See `kernels.by_rows` for pictures whose rows are split.
    """
    b, h, w, c = x.shape
    tall, wide = -(-h // 2), -(-w // 2)  # tiles
    padded = jnp.pad(by_rows.padded(x, 1, 1), ((0, 0), (0, h % 2), (1, 1 + w % 2), (0, 0)))
    # the four stacked rows come first, so the products' operand needs no other layout
    rows = padded.reshape(b, tall + 1, 2, 2 * (wide + 1), c)
    rows = _four(rows[:, :-1, 0], rows[:, :-1, 1], rows[:, 1:, 0], rows[:, 1:, 1])
    columns = rows.reshape(4, b, tall, wide + 1, 2, c)
    tiles = _four(columns[..., :-1, 0, :], columns[..., :-1, 1, :], columns[..., 1:, 0, :], columns[..., 1:, 1, :])
    products = jnp.einsum("ktc,kco->kto", tiles.reshape(16, -1, c), weight).reshape(4, 4, b, tall, wide, -1)
    across = jnp.stack(_two(*products), axis=-2)
    y = jnp.stack(_two(*across), axis=2).reshape(b, 2 * tall, 2 * wide, -1)
    return y[:, :h, :w]


def _four(d0: Array, d1: Array, d2: Array, d3: Array) -> Array:
    return jnp.stack([d0 - d2, d1 + d2, d2 - d1, d1 - d3])


def _two(m0: Array, m1: Array, m2: Array, m3: Array) -> tuple[Array, Array]:
    return m0 + m1 + m2, m1 - m2 - m3
