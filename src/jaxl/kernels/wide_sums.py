"""Products and convolutions of bfloat16 whose sums leave them in float32, for CPUs with units for such products.

XLA hands those to a library that uses the units (Intel's AMX, AMD's AVX512-BF16), and its own convolutions and products
with narrow results not. On two cores of an AMD EPYC it runs products of bfloat16 at 178 GFLOP/s, with wide sums at 399,
and those of float32 at 208; 3x3 convolutions of 256 channels at 182, and as three such products at 276
(docs/performance.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxl.kernels import Kernels, by_rows

# The sums of a convolution that are added up should stay in the caches; where they do not, XLA's own is faster.
SUMS_BYTES = 2**22


def takes(kernels: Kernels, x: Array) -> bool:
    return kernels.sums == "wide" and x.dtype == jnp.bfloat16


def product(x: Array, weight: Array, bias: Array | None) -> Array:
    """x [..., I] and weight [I, O] or [1, 1, I, O], bias [O] -> [..., O]."""
    sums = jnp.dot(x, weight.reshape(weight.shape[-2:]), preferred_element_type=jnp.float32)
    return _with_bias(sums, bias)


def fits(x: Array, channels: int) -> bool:
    """Whether a convolution of x [B, H, W, I] to so many channels is faster so."""
    return x.shape[1] * x.shape[2] * channels * 4 <= SUMS_BYTES


# jitted on its own, so that layers of the same shapes are compiled once
@jax.jit
def convolution(x: Array, weight: Array, bias: Array | None) -> Array:
    """x [B, H, W, I], weight [3, 3, I, O] and bias [O] -> [B, H, W, O]: stride 1, one pixel of zeros all around.

    A product for each row of the filter, of pixels side by side: fewer sums to add up than with one for each pixel of
    the filter, and a third of the memory of one product for all.
    """
    _, h, w, inputs = x.shape
    padded = jnp.pad(by_rows.padded(x, 1, 1), ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([padded[:, :, j : j + w] for j in range(3)], axis=-1)
    rows = weight.reshape(3, 3 * inputs, -1)
    products = (jnp.dot(columns[:, i : i + h], rows[i], preferred_element_type=jnp.float32) for i in range(3))
    return _with_bias(sum(products, jnp.zeros((), jnp.float32)), bias)


def _with_bias(sums: Array, bias: Array | None) -> Array:
    return (sums if bias is None else sums + bias.astype(jnp.float32)).astype(jnp.bfloat16)
