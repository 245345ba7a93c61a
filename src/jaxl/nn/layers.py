"""The layers that all networks share: each a shapes function and a pure function.

Activations are NHWC or [B, T, D], in the dtype of the parameters (float32 or bfloat16). Statistics of norms and the
softmax are float32 whatever that dtype is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

Params = Mapping[str, Any]
Shapes = dict[str, Any]

# Scores of one attention call are kept under this many bytes by working through the queries in chunks; a row of the
# softmax never depends on another, so the result does not change. At 1024x1024 this touches the VAE's one layer of
# 16384 tokens (1 GiB of scores an image) and U-Net batches on chips without a flash kernel.
MAX_SCORE_BYTES = 2**30


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


def group_norm(p: Params, x: Array, groups: int, eps: float, *, silu: bool = False) -> Array:
    """Normalise [B, H, W, C] over space and groups of channels (Wu & He 2018, arXiv:1803.08494), then maybe SiLU."""
    b, h, w, c = x.shape
    f = x.astype(jnp.float32).reshape(b, h * w, groups, c // groups)
    f = f - f.mean((1, 3), keepdims=True)
    f = f * lax.rsqrt(jnp.square(f).mean((1, 3), keepdims=True) + eps)
    f = f.reshape(x.shape) * p["weight"].astype(jnp.float32) + p["bias"].astype(jnp.float32)
    return (jax.nn.silu(f) if silu else f).astype(x.dtype)


def attention(q: Array, k: Array, v: Array, heads: int, *, causal: bool = False) -> Array:
    """Scaled dot-product attention: q [B, T, N*D], k and v [B, S, N*D] -> [B, T, N*D], softmax in float32."""
    b, t, width = q.shape
    s = k.shape[1]
    q, k, v = (a.reshape(b, -1, heads, width // heads) for a in (q, k, v))
    scale = (width // heads) ** -0.5

    def attend(q: Array, first: Array | int) -> Array:
        scores = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32) * scale
        if causal:
            rows = first + jnp.arange(q.shape[1])[:, None]
            scores = jnp.where(rows >= jnp.arange(s), scores, -jnp.inf)
        return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)

    chunks = 1
    while b * heads * (t // chunks) * s * 4 > MAX_SCORE_BYTES and t % (2 * chunks) == 0:
        chunks *= 2
    if chunks == 1:
        return attend(q, 0).reshape(b, t, width)
    rows = t // chunks
    parts = q.reshape(b, chunks, rows, heads, -1).swapaxes(0, 1)
    out = lax.map(lambda part: attend(part[0], part[1]), (parts, jnp.arange(chunks) * rows))
    return out.swapaxes(0, 1).reshape(b, t, width)


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


def resnet(p: Params, x: Array, groups: int, eps: float, temb: Array | None = None) -> Array:
    """Two normalised convolutions around a shortcut; `temb` [B, E], already activated, is added between them."""
    h = conv(p["conv1"], group_norm(p["norm1"], x, groups, eps, silu=True))
    if temb is not None:
        h = h + linear(p["time_emb_proj"], temb)[:, None, None]
    h = conv(p["conv2"], group_norm(p["norm2"], h, groups, eps, silu=True))
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
