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

Params = Mapping[str, Any]
Shapes = dict[str, Any]

# Attention works through heads, then through parts of the queries, so that the scores it holds at a time stay under
# this many bytes. A row of the softmax never depends on another, so the result does not change. On a CPU that is
# what the caches hold (1.3 to 3.4 times faster than all at once from 1024 tokens on); elsewhere it is a bound on
# memory, which at 1024x1024 only the VAE's one layer of 16384 tokens and large batches of the U-Net come near.
CPU_SCORE_BYTES = 2**23
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
    b, _, _, c = x.shape

    def over_groups(by_channel: Array) -> Array:
        """Means by channel [B, C] -> the means of their groups, [B, 1, 1, C]."""
        means = by_channel.reshape(b, groups, c // groups).mean(-1, keepdims=True)
        return jnp.broadcast_to(means, (b, groups, c // groups)).reshape(b, 1, 1, c)

    # by channel first, because reducing rows of channels needs no other layout than the one the picture has
    f = x.astype(jnp.float32)
    f = f - over_groups(f.mean((1, 2)))
    scale = lax.rsqrt(over_groups(jnp.square(f).mean((1, 2))) + eps) * p["weight"].astype(jnp.float32)
    f = f * scale + p["bias"].astype(jnp.float32)
    return (jax.nn.silu(f) if silu else f).astype(x.dtype)


def attention(q: Array, k: Array, v: Array, heads: int, *, causal: bool = False, lengths: Array | None = None) -> Array:
    """Scaled dot-product attention: q [B, T, N*D], k and v [B, S, N*D] -> [B, T, N*D], softmax in float32.

    `lengths`, int32 [B] in 1..S, is how many keys of each row are real; finite ones from there on have no influence.
    """
    attend = partial(_attention, heads=heads, causal=causal)
    cpu, default = (partial(attend, limit=limit) for limit in (CPU_SCORE_BYTES, MAX_SCORE_BYTES))
    return lax.platform_dependent(q, k, v, lengths, cpu=cpu, default=default)


def _attention(q: Array, k: Array, v: Array, lengths: Array | None, *, heads: int, causal: bool, limit: int) -> Array:
    b, t, width = q.shape
    q, k, v = (a.reshape(b, -1, heads, width // heads).transpose(2, 0, 1, 3) for a in (q, k, v))
    scale = (width // heads) ** -0.5

    def rows(q: Array, k: Array, v: Array, first: Array | int) -> Array:
        """Some rows of the result, the first of them number `first`: q [..., t, D] with k and v [..., S, D]."""
        scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32) * scale
        if causal:
            ahead = jnp.arange(k.shape[-2]) > first + jnp.arange(q.shape[-2])[:, None]
            scores = jnp.where(ahead, -jnp.inf, scores)
        if lengths is not None:
            scores = jnp.where(jnp.arange(k.shape[-2]) < lengths[:, None, None], scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        # the sum is divided out last, where there is least to divide
        out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    def head(q: Array, k: Array, v: Array) -> Array:
        """One head, [B, T, D], in as many parts as it takes."""
        parts = 1
        while b * t // parts * k.shape[1] * 4 > limit and t % (2 * parts) == 0:
            parts *= 2
        if parts == 1:
            return rows(q, k, v, 0)
        split = q.reshape(b, parts, t // parts, -1).swapaxes(0, 1)
        out = lax.map(lambda part: rows(part[0], k, v, part[1]), (split, jnp.arange(parts) * (t // parts)))
        return out.swapaxes(0, 1).reshape(q.shape)

    together = heads * b * t * k.shape[2] * 4 <= limit
    out = rows(q, k, v, 0) if together else lax.map(lambda each: head(*each), (q, k, v))
    return out.transpose(1, 2, 0, 3).reshape(b, t, width)


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
@partial(jax.jit, static_argnums=(2, 3))
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
