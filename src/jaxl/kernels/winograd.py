"""Convolutions of 3x3 by Winograd's algorithm F(2x2, 3x3) (Lavin & Gray 2015, arXiv:1509.09308, section 4.1).

Four outputs of a tile take 16 products instead of 36. All its constants are 0, 1 or 1/2, so float32 stays as exact as
the plain sum; the larger F(4x4, 3x3) loses a digit. What is between the transforms takes four times the memory of the
picture, so a large one is gone through in blocks of rows that stay in the caches.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxl.kernels import by_rows
from jaxl.kernels.by_image import by_image, divides

# of what lies between the transforms of a block, for its inputs or its outputs
BLOCK_BYTES = 2**21
# of a block, however wide: products of fewer rows read the weight more often than they should
MIN_TILES = 128
# with fewer of either the transforms cost what the products save
MIN_CHANNELS = 64


def transformed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that `transformed` gives to a weight."""
    return (16, *shape[2:])


def transformed(weight: Any) -> np.ndarray:
    """A weight [3, 3, I, O] float32 -> [16, I, O], on the host; the 16 count across first, then down."""
    return _transformed(np, np.asarray(weight))


def takes(x: Array) -> bool:
    """Return whether `convolve` is for pictures [B, H, W, C]: each device has some of them, or they are small."""
    return 16 * x.size <= BLOCK_BYTES or divides(x.shape[0])


def pays(x: Array, weight: Array) -> bool:
    """Return whether `convolve` is faster for pictures, with a weight [3, 3, I, O] that is transformed each time."""
    inputs, outputs = weight.shape[2:]
    worth = min(inputs, outputs) >= MIN_CHANNELS and outputs <= x.shape[1] * x.shape[2]
    return worth and x.dtype == weight.dtype == jnp.float32 and takes(x)


# Jitted on its own, so that layers of the same shapes are compiled once.
@jax.jit
def convolve(x: Array, weight: Array) -> Array:
    """[B, H, W, I] and a weight [16, I, O], or [3, 3, I, O], -> [B, H, W, O]: stride 1, a pixel of zeros all around.

    See `kernels.by_rows` for pictures whose rows are split.
    """
    if weight.ndim == 4:
        weight = _transformed(jnp, weight)
    _, h, w, _ = x.shape
    padded = jnp.pad(by_rows.padded(x, 1, 1), ((0, 0), (0, h % 2), (1, 1 + w % 2), (0, 0)))
    tall, wide = -(-h // 2), -(-w // 2)  # tiles
    most = max(BLOCK_BYTES // (64 * wide * max(weight.shape[1:])), MIN_TILES // wide, 1)
    if most >= tall:
        return _convolve(padded, weight)[:, :h, :w]
    # products of other numbers of rows than powers of two are slower
    return by_image(partial(_in_blocks, 1 << most.bit_length() - 1), (padded,), (weight,))[:, :h, :w]


def _in_blocks(rows: int, padded: Array, weight: Array) -> Array:
    """`_convolve`, so many rows of tiles at a time."""
    b, h, w, c = padded.shape
    tall, wide = h // 2 - 1, w // 2 - 1
    blocks = -(-tall // rows)

    def add(n: Array, y: Array) -> Array:
        # the last block ends where the picture does
        image, first = n // blocks, 2 * jnp.minimum(n % blocks * rows, tall - rows)
        block = lax.dynamic_slice(padded, (image, first, 0, 0), (1, 2 * rows + 2, w, c))
        return lax.dynamic_update_slice(y, _convolve(block, weight), (image, first, 0, 0))

    # all of this is written over; of zeros XLA makes one for all convolutions, and copies of it before the first
    y = jnp.broadcast_to(padded[0, 1, 1, 0], (b, 2 * tall, 2 * wide, weight.shape[-1]))
    return lax.fori_loop(0, b * blocks, add, y)


def _convolve(padded: Array, weight: Array) -> Array:
    """Pictures [B, H + 2, W + 2, I] with what is around them -> [B, H, W, O], both sides even."""
    b, h, w, c = padded.shape
    tall, wide = h // 2 - 1, w // 2 - 1
    # the four stacked rows come first, so the products' operand needs no other layout
    rows = padded.reshape(b, tall + 1, 2, 2 * (wide + 1), c)
    rows = _four(rows[:, :-1, 0], rows[:, :-1, 1], rows[:, 1:, 0], rows[:, 1:, 1])
    columns = rows.reshape(4, b, tall, wide + 1, 2, c)
    tiles = _four(columns[..., :-1, 0, :], columns[..., :-1, 1, :], columns[..., 1:, 0, :], columns[..., 1:, 1, :])
    products = jnp.einsum("ktc,kco->kto", tiles.reshape(16, -1, c), weight).reshape(4, 4, b, tall, wide, -1)
    across = jnp.stack(_two(*products), axis=-2)
    return jnp.stack(_two(*across), axis=2).reshape(b, 2 * tall, 2 * wide, -1)


def _transformed(xp: ModuleType, weight: Any) -> Any:
    """`transformed`, by NumPy or JAX: G of the paper, equation 8, on both axes."""

    def four(w0: Any, w1: Any, w2: Any) -> Any:
        around = (w0 + w2) / 2
        return xp.stack([w0, around + w1 / 2, around - w1 / 2, w2])

    return four(*xp.moveaxis(four(*weight), 1, 0)).reshape(transformed_shape(weight.shape))


def _four(d0: Array, d1: Array, d2: Array, d3: Array) -> Array:
    return jnp.stack([d0 - d2, d1 + d2, d2 - d1, d1 - d3])


def _two(m0: Array, m1: Array, m2: Array, m3: Array) -> tuple[Array, Array]:
    return m0 + m1 + m2, m1 - m2 - m3
