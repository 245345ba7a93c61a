"""3x3 convolutions of pictures at twice their size, of nearest neighbours, which never make those pictures.

The nine that a pixel sees are four pixels of the small picture, some of them more than once. So each of the four pixels
that one becomes is a 2x2 convolution by sums of the filter: four ninths of the products (Shi et al. 2016,
arXiv:1609.05158, has the converse).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxl.kernels import by_rows

# Of each of the two pixels that one becomes, on an axis: the filter's weights for that one and its neighbour, in the
# order of the small picture.
TAPS = (((0,), (1, 2)), ((0, 1), (2,)))

# with fewer pixels the sums of the filter cost too much, or Winograd's transforms too little
MIN_PIXELS = 256


def takes(x: Array, weight: Array) -> bool:
    """Return whether `convolve` is faster for pictures [B, H, W, I]: in float32."""
    return x.dtype == weight.dtype == jnp.float32 and x.shape[0] * x.shape[1] * x.shape[2] >= MIN_PIXELS


# jitted on its own, so that layers of the same shapes are compiled once
@jax.jit
def convolve(x: Array, weight: Array, bias: Array | None) -> Array:
    """[B, H, W, I] -> [B, 2H, 2W, O]: each pixel four times, zeros around them, convolved by [3, 3, I, O], plus bias.

    See `kernels.by_rows` for pictures whose rows are split.
    """
    b, h, w, _ = x.shape
    padded = by_rows.padded(x, 1, 1)

    def pixel(down: int, right: int) -> Array:
        columns = [_sums(weight, 1, taps) for taps in TAPS[right]]
        own = jnp.stack([jnp.stack([_sums(each, 0, taps) for each in columns]) for taps in TAPS[down]])
        rows = lax.slice_in_dim(padded, down, down + h + 1, axis=1)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(rows, own, (1, 1), ((0, 0), (1 - right, right)), dimension_numbers=layout)

    rows = [jnp.stack([pixel(down, right) for right in range(2)], axis=3) for down in range(2)]
    y = jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)
    return y if bias is None else y + bias


def _sums(weight: Array, axis: int, taps: tuple[int, ...]) -> Array:
    first, *others = (lax.index_in_dim(weight, tap, axis, keepdims=False) for tap in taps)
    return sum(others, first)
