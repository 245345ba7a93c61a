"""Numbers of eight bits with static scales: int8, or e4m3 (Micikevicius et al. 2022, arXiv:2209.05433).

Products of them (`nn.layer_kinds.Quantised`) are summed in int32 or float32. An int8 weight has a scale for each output
channel. One of e4m3 has a single one, because floating point needs no more, and that is a power of two, as its input's
is: so to multiply by them rounds nothing, and values that are scaled first and multiplied in bfloat16 or float32 give
what a unit for e4m3 gives and multiplies after. XLA knows that form, `convert, multiply by a scalar, product`, and
makes cuBLASLt and cuDNN calls in e4m3 of it (`GemmRewriter`, `CudnnFusedConvRewriter`); elsewhere it computes the same
numbers without the gain. Weights that a checkpoint has in e4m3 with scales are kept as they are; those scales are no
powers of two, so they too multiply the sums.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

INT8_MAX = 127.0  # -128 is left out, so that the range is the same on both sides
E4M3_MAX = 448.0


def scale_of(largest: Array, dtype: DTypeLike) -> Array:
    """The scale, float32, at which magnitudes up to `largest` just fit; 1 where that is 0."""
    if dtype == jnp.int8:
        return jnp.where(largest > 0, largest / INT8_MAX, 1.0)
    _, exponent = jnp.frexp(largest / E4M3_MAX)
    return jnp.ldexp(jnp.float32(1.0), exponent)


def quantise(x: Array, scale: Array, dtype: DTypeLike) -> Array:
    """The nearest multiples of the scale that int8 or e4m3 has; what is beyond its range becomes the end of it."""
    if dtype == jnp.int8:
        return jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -INT8_MAX, INT8_MAX).astype(jnp.int8)
    # to convert does not saturate but gives NaN
    return jnp.clip(x / scale.astype(x.dtype), -E4M3_MAX, E4M3_MAX).astype(dtype)


def rounded(a: Array, scale: Array, dtype: DTypeLike) -> Array:
    """What `quantise` keeps of an array, in the array's own dtype."""
    return (quantise(a, scale, dtype).astype(jnp.float32) * scale).astype(a.dtype)


def weight_scale(weight: Array, dtype: DTypeLike) -> Array:
    """The scale, float32, of a layer's weight [..., O]: [O] for int8, [] for e4m3."""
    axes = tuple(range(weight.ndim - 1)) if dtype == jnp.int8 else None
    return scale_of(jnp.abs(weight.astype(jnp.float32)).max(axes), dtype)


def quantise_weight(weight: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """A layer's weight [..., O] -> the quantised one and its scale. A matrix of e4m3 is turned into [O, I].

    That is the only order that cuBLASLt takes in e4m3; XLA would turn it at each step.
    """
    scale = weight_scale(weight, dtype)
    numbers = quantise(weight.astype(jnp.float32), scale, dtype)
    return (numbers.T if weight.ndim == 2 and dtype != jnp.int8 else numbers), scale


@jax.custom_vjp
def observed(x: Array, largest: Array) -> Array:
    """x itself, made so that the gradient of anything by `largest`, float32 [], is the greatest magnitude in x.

    So the inputs of layers deep in a network are measured by a pure function. That gradient depends on no later one,
    and XLA drops the whole backward pass.
    """
    return x


def _observe(x: Array, largest: Array) -> tuple[Array, Array]:
    return x, jnp.abs(x).max().astype(jnp.float32)


def _report(seen: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient, seen


observed.defvjp(_observe, _report)
