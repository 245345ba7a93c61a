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

from jaxl.kernels import XLA, Kernels
from jaxl.kernels.group_norm import group_norm

Params = Mapping[str, Any]
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


def linear(p: Params, x: Array) -> Array:
    """[..., I] -> [..., O]. A 1x1 convolution's weight [1, 1, I, O] is taken as the linear layer it is."""
    weight = p["weight"]
    y = x @ weight.reshape(weight.shape[-2:])
    return y + p["bias"] if "bias" in p else y


def conv(p: Params, x: Array, *, stride: int = 1, padding: tuple[int, int] | None = None) -> Array:
    """[B, H, W, I] -> [B, H', W', O]; `padding` (before, after) on both axes keeps the size by default."""
    kernel = p["weight"].shape[0]
    pad = padding or (kernel // 2, kernel // 2)
    y = lax.conv_general_dilated(
        x, p["weight"], (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + p["bias"]


def layer_norm(p: Params, x: Array, eps: float = 1e-5) -> Array:
    """Normalise the last axis (Ba et al. 2016, arXiv:1607.06450)."""
    f = x.astype(jnp.float32)
    f = f - f.mean(-1, keepdims=True)
    f = f * lax.rsqrt(jnp.square(f).mean(-1, keepdims=True) + eps)
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
def resnet(p: Params, x: Array, groups: int, eps: float, kernels: Kernels = XLA, temb: Array | None = None) -> Array:
    """Two normalised convolutions around a shortcut; `temb` [B, E], already activated, is added between them."""
    norm = partial(group_norm, groups=groups, eps=eps, silu=True, kernels=kernels)
    h = conv(p["conv1"], norm(p["norm1"], x))
    if temb is not None:
        h = h + linear(p["time_emb_proj"], temb)[:, None, None]
    h = conv(p["conv2"], norm(p["norm2"], h))
    return (linear(p["conv_shortcut"], x) if "conv_shortcut" in p else x) + h


def upsample(x: Array, height: int, width: int) -> Array:
    """Nearest-neighbour enlargement of [B, H, W, C]; twice the size is the usual case, odd skips ask for one less."""
    b, h, w, c = x.shape
    if (height, width) == (2 * h, 2 * w):
        return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, height, width, c)
    return x[:, jnp.arange(height) * h // height][:, :, jnp.arange(width) * w // width]


def numbered(items: list[Shapes]) -> Shapes:
    """A list of subtrees under the keys "0", "1", ..., as checkpoints name them."""
    return {str(i): item for i, item in enumerate(items)}
