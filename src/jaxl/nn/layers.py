"""The layers that all networks share: each a shapes function and a pure function.

Activations are NHWC or [B, T, D], in the dtype of the parameters (float32 or bfloat16). Statistics of norms and the
softmax are float32 whatever that dtype is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.kernels import XLA, Kernels, Wrap, wide_sums
from jaxl.kernels import upsampled_conv as double
from jaxl.kernels.group_norm import group_norm, scale_and_shift
from jaxl.nn.layer_kinds import Layer, Params, Plain, Quantised, layer_of

Shapes = dict[str, Any]


def linear_shapes(inputs: int, outputs: int, dtype: DTypeLike, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {"weight": jax.ShapeDtypeStruct((inputs, outputs), dtype)}
    if bias:
        shapes["bias"] = jax.ShapeDtypeStruct((outputs,), dtype)
    return shapes


def conv_shapes(inputs: int, outputs: int, kernel: int, dtype: DTypeLike) -> Shapes:
    return {
        "weight": jax.ShapeDtypeStruct((kernel, kernel, inputs, outputs), dtype),
        "bias": jax.ShapeDtypeStruct((outputs,), dtype),
    }


def norm_shapes(channels: int, dtype: DTypeLike) -> Shapes:
    return {"weight": jax.ShapeDtypeStruct((channels,), dtype), "bias": jax.ShapeDtypeStruct((channels,), dtype)}


def linear(
    p: Params, x: Array, kernels: Kernels = XLA, *, norm: Params | None = None, residual: Array | None = None
) -> Array:
    """[..., I] -> [..., O]: a layer norm of `x`, if given, the layer, plus `residual`.

    A 1x1 convolution's weight [1, 1, I, O] is taken as the linear layer it is.
    """
    layer = layer_of(p)
    fused = _product(layer, x, kernels, norm)
    if fused is not None:
        return fused(residual=residual)
    x = x if norm is None else layer_norm(norm, x, kernels=kernels)
    if isinstance(layer, Plain) and wide_sums.takes(kernels, x):
        y = wide_sums.product(x, layer.weight, layer.bias)
    else:
        y = layer.linear(x)
    return y if residual is None else residual + y


def geglu(p: Params, x: Array, norm: Params, kernels: Kernels = XLA) -> Array:
    """[N, I] -> [N, O]: a layer norm, a linear layer, and half of it times GELU of the other half.

    Shazeer 2020, arXiv:2002.05202.
    """
    fused = _product(layer_of(p), x, kernels, norm, halves=2)
    if fused is not None:
        return fused(gate=gelu)
    y, gate = jnp.split(linear(p, x, kernels, norm=norm), 2, axis=-1)
    return y * gelu(gate)


def gelu(x: Array) -> Array:
    """Exact GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415), in float32: by erf, which is half the work of erfc."""
    f = x.astype(jnp.float32)
    return (0.5 * f * (1.0 + lax.erf(f * 2**-0.5))).astype(x.dtype)


def _product(
    layer: Layer, x: Array, kernels: Kernels, norm: Params | None, halves: int = 1
) -> Callable[..., Array] | None:
    """Return the product of a layer's own kernel, which takes what comes after it; None if XLA's is to be taken."""
    if kernels.product == "xla" or not isinstance(layer, Quantised):
        return None
    from jaxl.kernels import tpu_product as tpu  # Pallas takes a third of a second to import

    own = None if norm is None else (norm["weight"], norm["bias"])
    layer_and_norm = (x, layer.weight, layer.input_scale, layer.scale, layer.bias)
    return partial(tpu.product, *layer_and_norm, norm=own) if tpu.takes(x, layer.weight, halves) else None


def conv(
    p: Params,
    x: Array,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    kernels: Kernels = XLA,
    wrap: Wrap = XLA.wrap,
) -> Array:
    """[B, H, W, I] -> [B, H', W', O]; `padding` (before, after) on both axes keeps the size by default.

    Where the picture is to `wrap`, its opposite edges stand in place of the padding's zeros.
    """
    kernel = p["weight"].shape[0]
    padding = padding or (kernel // 2, kernel // 2)
    if kernel == 1 or not any(wrap):
        return layer_of(p).conv(x, stride, padding, kernels)
    # what sees the zeros around a larger picture is cut off, so that any form of the convolution will do
    rim = [(stride, stride) if around else (0, 0) for around in wrap]
    y = layer_of(p).conv(jnp.pad(x, ((0, 0), *rim, (0, 0)), mode="wrap"), stride, padding, kernels)
    inner = (
        slice(1, 1 - -side // stride) if around else slice(None)
        for around, side in zip(wrap, x.shape[1:3], strict=True)
    )
    return y[:, *inner]


def normalised_conv(
    norm: Params,
    p: Params,
    x: Array,
    groups: int,
    eps: float,
    kernels: Kernels,
    *,
    added: Array | None = None,
    skip: Array | None = None,
    residual: Array | None = None,
) -> Array:
    """Group norm of `x` (`added` and `skip` as there) and SiLU, a 3x3 convolution, plus `residual`."""
    layer = layer_of(p)
    fused = kernels.conv == "tpu" and not any(kernels.wrap)
    if fused and isinstance(layer, Plain | Quantised) and layer.bias is not None:
        from jaxl.kernels import tpu_conv as tpu  # Pallas takes a third of a second to import

        if tpu.takes(x, layer.weight):
            parts = [x] if skip is None else [x, skip]
            by_channel = scale_and_shift(norm, parts, groups, eps, added=added, kernels=kernels)
            scales = (layer.input_scale, layer.scale) if isinstance(layer, Quantised) else None
            return tpu.conv(x, layer.weight, layer.bias, by_channel, residual, skip=skip, scales=scales)
    x = group_norm(norm, x, groups, eps, silu=True, added=added, skip=skip, kernels=kernels)
    y = conv(p, x, kernels=kernels, wrap=kernels.wrap)
    return y if residual is None else residual + y


def layer_norm(p: Params, x: Array, eps: float = 1e-5, kernels: Kernels = XLA) -> Array:
    """Normalise the last axis (Ba et al. 2016, arXiv:1607.06450)."""
    f = x.astype(jnp.float32)
    mean = f.mean(-1, keepdims=True)
    if kernels.layer_norm == "one_pass":
        # both sums are made where `x` is written, instead of reading it again
        variance = jnp.maximum(jnp.square(f).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(f - mean).mean(-1, keepdims=True)
    f = (f - mean) * lax.rsqrt(variance + eps)
    return (f * p["weight"].astype(jnp.float32) + p["bias"].astype(jnp.float32)).astype(x.dtype)


def resnet_shapes(inputs: int, outputs: int, dtype: DTypeLike, *, time_dim: int | None = None) -> Shapes:
    shapes = {
        "norm1": norm_shapes(inputs, dtype),
        "conv1": conv_shapes(inputs, outputs, 3, dtype),
        "norm2": norm_shapes(outputs, dtype),
        "conv2": conv_shapes(outputs, outputs, 3, dtype),
    }
    if time_dim is not None:
        shapes["time_emb_proj"] = linear_shapes(time_dim, outputs, dtype)
    if inputs != outputs:
        shapes["conv_shortcut"] = conv_shapes(inputs, outputs, 1, dtype)
    return shapes


# `jit` in a program means that residual blocks of the same shapes are traced once, not each.
@partial(jax.jit, static_argnums=(2, 3, 4))
def resnet(
    p: Params,
    x: Array,
    groups: int,
    eps: float,
    kernels: Kernels = XLA,
    temb: Array | None = None,
    skip: Array | None = None,
) -> Array:
    """Two normalised convolutions around a shortcut; `temb` [B, E], already activated, is added between them.

    `skip` [B, H, W, S] stands behind `x` on the channel axis, without being joined to it more often than the first
    convolution needs.
    """
    h = normalised_conv(p["norm1"], p["conv1"], x, groups, eps, kernels, skip=skip)
    added = None if temb is None else linear(p["time_emb_proj"], temb)
    if skip is not None:
        x = layer_of(p["conv_shortcut"]).linear_of_both(x, skip)
    elif "conv_shortcut" in p:
        x = linear(p["conv_shortcut"], x)
    return normalised_conv(p["norm2"], p["conv2"], h, groups, eps, kernels, added=added, residual=x)


def upsampled_conv(p: Params, x: Array, height: int, width: int, kernels: Kernels = XLA) -> Array:
    """[B, H, W, I] -> [B, height, width, O]: `upsample`, then a 3x3 convolution."""
    layer = layer_of(p)
    twice = (height, width) == (2 * x.shape[1], 2 * x.shape[2]) and not any(kernels.wrap)
    if twice and kernels.conv == "tpu" and isinstance(layer, Plain) and layer.bias is not None:
        from jaxl.kernels import tpu_upsampled_conv as tpu  # Pallas takes a third of a second to import

        if tpu.takes(x, layer.weight):
            return tpu.conv(x, layer.weight, layer.bias)
    if twice and kernels.conv == "winograd" and isinstance(layer, Plain) and double.takes(x, layer.weight):
        return double.convolve(x, layer.weight, layer.bias)
    return conv(p, upsample(x, height, width, kernels), kernels=kernels, wrap=kernels.wrap)


def upsample(x: Array, height: int, width: int, kernels: Kernels = XLA) -> Array:
    """Nearest-neighbour enlargement of [B, H, W, C]; twice the size is the usual case, odd skips ask for one less."""
    b, h, w, c = x.shape
    if (height, width) == (2 * h, 2 * w):
        if kernels.conv == "tpu":  # a product by ones and zeros, which is exact, moves columns faster than copies do
            twice = (jnp.arange(width)[:, None] // 2 == jnp.arange(w)).astype(x.dtype)
            x = jnp.einsum("uw,bhwc->bhuc", twice, x, precision=lax.Precision.HIGHEST)
            return jnp.broadcast_to(x[:, :, None], (b, h, 2, width, c)).reshape(b, height, width, c)
        return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, height, width, c)
    return x[:, jnp.arange(height) * h // height][:, :, jnp.arange(width) * w // width]


def numbered(items: list[Shapes]) -> Shapes:
    """A list of subtrees under the keys "0", "1", ..., as checkpoints name them."""
    return {str(i): item for i, item in enumerate(items)}
