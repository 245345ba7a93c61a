"""The layers that all networks share: each a shapes function and a pure function.

Activations are NHWC or [B, T, D], in the dtype of the parameters (float32 or bfloat16). Statistics of norms and the
softmax are float32 whatever that dtype is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.kernels import XLA, Kernels, winograd
from jaxl.kernels.group_norm import group_norm, scale_and_shift
from jaxl.nn.quantised import observed, quantised_conv, quantised_linear

Params = Mapping[str, Any]
Shapes = dict[str, Any]


# Winograd's tiles take four times the memory of the picture; where they fit no cache, reading them costs more than the
# products they save.
MAX_TILES_BYTES = 2**25


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


def linear(p: Params, x: Array) -> Array:
    """[..., I] -> [..., O]. A 1x1 convolution's weight [1, 1, I, O] is taken as the linear layer it is."""
    if "input_scale" in p:
        return quantised_linear(p, x)
    if "input_largest" in p:
        x = observed(x, p["input_largest"])
    weight = p["weight"]
    y = (x.reshape(-1, x.shape[-1]) @ weight.reshape(weight.shape[-2:])).reshape(*x.shape[:-1], weight.shape[-1])
    return y + p["bias"] if "bias" in p else y


def conv(
    p: Params, x: Array, *, stride: int = 1, padding: tuple[int, int] | None = None, kernels: Kernels = XLA
) -> Array:
    """[B, H, W, I] -> [B, H', W', O]; `padding` (before, after) on both axes keeps the size by default."""
    kernel = p["weight"].shape[0]
    pad = padding or (kernel // 2, kernel // 2)
    if "input_scale" in p:
        return quantised_conv(p, x, stride, pad)
    if "input_largest" in p:
        x = observed(x, p["input_largest"])
    if "winograd" in p and 16 * x.size <= MAX_TILES_BYTES:
        return winograd.convolve(x, p["winograd"]) + p["bias"]
    if kernels.conv == "tpu" and stride == 1 and pad == (1, 1):
        from jaxl.kernels import tpu_conv as tpu  # Pallas takes a third of a second to import

        if tpu.takes(x, p["weight"]):
            return tpu.conv(x, p["weight"], p["bias"])
    y = lax.conv_general_dilated(
        x, p["weight"], (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + p["bias"]


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
    if kernels.conv == "tpu" and p.keys() == {"weight", "bias"}:
        from jaxl.kernels import tpu_conv as tpu

        whole = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        if tpu.takes(whole, p["weight"]):
            by_channel = scale_and_shift(norm, [whole], groups, eps, added=added, kernels=kernels)
            return tpu.conv(whole, p["weight"], p["bias"], by_channel, residual)
    y = conv(p, group_norm(norm, x, groups, eps, silu=True, added=added, skip=skip, kernels=kernels))
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
        x = _linear_of_both(p["conv_shortcut"], x, skip)
    elif "conv_shortcut" in p:
        x = linear(p["conv_shortcut"], x)
    return normalised_conv(p["norm2"], p["conv2"], h, groups, eps, kernels, added=added, residual=x)


def _linear_of_both(p: Params, x: Array, skip: Array) -> Array:
    """[..., I] and [..., S] -> [..., O] by a weight of I+S rows, as if they were joined."""
    if p.keys() != {"weight", "bias"}:  # quantised layers have one scale for all of their input, and write it anyway
        return linear(p, jnp.concatenate([x, skip], axis=-1))
    own, behind = jnp.split(p["weight"].reshape(-1, p["weight"].shape[-1]), [x.shape[-1]])
    return x @ own + skip @ behind + p["bias"]


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
