"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxl.kernels import XLA, Kernels, cudnn_attention


def attention(
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    *,
    causal: bool = False,
    lengths: Array | None = None,
    kernels: Kernels = XLA,
) -> Array:
    """q [B, T, N*D], k and v [B, S, N*D] -> [B, T, N*D], softmax in float32.

    `lengths`, int32 [B] in 1..S, is how many keys of each row are real; the others, if finite, have no influence.
    """
    if kernels.attention == "cudnn" and cudnn_attention.takes(q, heads):
        return cudnn_attention.cudnn(q, k, v, heads, causal=causal, lengths=lengths)
    if kernels.attention == "tpu" and not causal:
        from jaxl.kernels import tpu_attention as tpu  # Pallas takes a third of a second to import

        if tpu.takes(q, k, heads):
            return tpu.tpu_attention(q, k, v, heads, lengths=lengths)
    return blockwise(q, k, v, heads, causal=causal, lengths=lengths, limit=kernels.score_bytes)


def blockwise(
    q: Array, k: Array, v: Array, heads: int, *, causal: bool = False, lengths: Array | None = None, limit: int
) -> Array:
    """Compute attention as XLA compiles it anywhere, with at most `limit` bytes of scores at a time."""
    b, t, width = q.shape
    q, k, v = (a.reshape(b, -1, heads, width // heads).transpose(2, 0, 1, 3) for a in (q, k, v))
    scale = (width // heads) ** -0.5

    def rows(q: Array, k: Array, v: Array, first: Array | int) -> Array:
        """Return rows `first` and following of the result: q [..., t, D] with k and v [..., S, D]."""
        scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32) * scale
        if causal:
            ahead = jnp.arange(k.shape[-2]) > first + jnp.arange(q.shape[-2])[:, None]
            scores = jnp.where(ahead, -jnp.inf, scores)
        if lengths is not None:
            scores = jnp.where(jnp.arange(k.shape[-2]) < lengths[:, None, None], scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        # dividing by the sum comes last, where there is least to divide
        out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    def head(q: Array, k: Array, v: Array) -> Array:
        """Return one head, [B, T, D], in as many parts as the limit needs."""
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
