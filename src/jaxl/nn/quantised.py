"""Products of eight-bit numbers with static scales: int8, or e4m3 (Micikevicius et al. 2022, arXiv:2209.05433).

The parameters of a quantised layer are those of the exact one with `weight` int8 or float8_e4m3fn, its `scale`, and
`input_scale` float32 [], what one unit of the weights and of the rounded input stands for. Products are summed in int32
or float32. An int8 weight has a scale for each output channel, float32 [O]. One of e4m3 has a single one, float32 [],
because floating point needs no more, and both its scales are powers of two: so to multiply by them rounds nothing, and
values that are scaled first and multiplied in bfloat16 or float32 give what a unit for e4m3 gives and multiplies after.
XLA knows that form, `convert, multiply by a scalar, product`, and makes cuBLASLt and cuDNN calls in e4m3 of it
(`GemmRewriter`, `CudnnFusedConvRewriter`); elsewhere it computes the same numbers without the gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

Params = Mapping[str, Any]
Product = Callable[[Array, Array, DTypeLike], Array]  # of values, weights and the dtype of the result

INT8_MAX = 127.0  # -128 is left out, so that the range is the same on both sides
E4M3_MAX = 448.0


def quantised_linear(p: Params, x: Array) -> Array:
    """[..., I] -> [..., O], in x's dtype; the weight is [I, O] in int8, [O, I] in e4m3."""
    axis = 0 if p["weight"].dtype == jnp.int8 else 1

    def product(x: Array, weight: Array, dtype: DTypeLike) -> Array:
        return lax.dot_general(x, weight, (((x.ndim - 1,), (axis,)), ((), ())), preferred_element_type=dtype)

    return _apply(p, x, product)


def quantised_conv(p: Params, x: Array, stride: int, padding: tuple[int, int]) -> Array:
    """[B, H, W, I] -> [B, H', W', O], in x's dtype."""

    def product(x: Array, weight: Array, dtype: DTypeLike) -> Array:
        return lax.conv_general_dilated(
            x,
            weight,
            (stride, stride),
            (padding, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=dtype,
        )

    return _apply(p, x, product)


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


def quantise_weight(weight: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """A layer's weight [..., O] -> the quantised one and its scale. A matrix of e4m3 is turned into [O, I].

    That is the only order that cuBLASLt takes in e4m3; XLA would turn it at each step.
    """
    f = weight.astype(jnp.float32)
    axes = tuple(range(f.ndim - 1)) if dtype == jnp.int8 else None
    scale = scale_of(jnp.abs(f).max(axes), dtype)
    rounded = quantise(f, scale, dtype)
    return (rounded.T if f.ndim == 2 and dtype != jnp.int8 else rounded), scale


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


def _apply(p: Params, x: Array, product: Product) -> Array:
    weight, scale, input_scale = p["weight"], p["scale"], p["input_scale"]
    rounded = quantise(x, input_scale, weight.dtype)
    if weight.dtype == jnp.int8:
        y = product(rounded, weight, jnp.int32).astype(jnp.float32) * (scale * input_scale)
        return (y + p["bias"].astype(jnp.float32) if "bias" in p else y).astype(x.dtype)
    # in a loop over timesteps XLA may convert the weights once before it, and multiply wide numbers; for a CPU it does
    rounded, weight = lax.optimization_barrier((rounded, weight))
    values, weights = (a.astype(x.dtype) * s.astype(x.dtype) for a, s in ((rounded, input_scale), (weight, scale)))
    y = product(values, weights, x.dtype)
    return y + p["bias"] if "bias" in p else y
