"""Products and convolutions of bfloat16 whose sums leave them in float32, for CPUs with units for such products (AMX).

XLA hands those to a library that uses the units, and its own convolutions and products with narrow results not. On two
cores of a Sapphire Rapids Xeon it runs products of bfloat16 at 80 GFLOP/s, at 180 to 210 with wide sums; 3x3
convolutions at 70, and at 130 to 280 as nine such products (docs/performance.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxl.kernels import Kernels


def takes(kernels: Kernels, x: Array) -> bool:
    return kernels.sums == "wide" and x.dtype == jnp.bfloat16


def product(x: Array, weight: Array, bias: Array | None) -> Array:
    """x [..., I] and weight [I, O] or [1, 1, I, O], bias [O] -> [..., O]."""
    sums = jnp.dot(x, weight.reshape(weight.shape[-2:]), preferred_element_type=jnp.float32)
    return _with_bias(sums, bias)


# jitted on its own, so that layers of the same shapes are compiled once
@jax.jit
def convolution(x: Array, weight: Array, bias: Array | None) -> Array:
    """x [B, H, W, I], weight [3, 3, I, O] and bias [O] -> [B, H, W, O]: stride 1, one pixel of zeros all around."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = (
        jnp.dot(padded[:, i : i + h, j : j + w], weight[i, j], preferred_element_type=jnp.float32)
        for i in range(3)
        for j in range(3)
    )
    return _with_bias(sum(shifted, jnp.zeros((), jnp.float32)), bias)


def _with_bias(sums: Array, bias: Array | None) -> Array:
    return (sums if bias is None else sums + bias.astype(jnp.float32)).astype(jnp.bfloat16)
