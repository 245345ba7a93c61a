"""Attention by cuDNN's fused kernels (`implementation="cudnn"` of `jax.nn.dot_product_attention`), for NVIDIA's GPUs.

Scores stay on the chip (Dao et al. 2022, arXiv:2205.14135), and queries, keys and values are read as the linear layers
wrote them, [B, T, N, D], so nothing is transposed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

# The limit on every GPU from compute capability 8.0 on; Hopper's kernels take heads of up to 256.
MAX_HEAD_SIZE = 128


def takes(q: Array, heads: int) -> bool:
    """Return whether there is a kernel for queries [B, T, N*D] of this dtype and head size."""
    size = q.shape[-1] // heads
    return q.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= MAX_HEAD_SIZE


def cudnn(q: Array, k: Array, v: Array, heads: int, *, causal: bool = False, lengths: Array | None = None) -> Array:
    """Compute `attention`. jax looks for cuDNN while it traces this, so the tracing machine must have it."""
    out = jax.nn.dot_product_attention(
        *(a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v)),
        key_value_seq_lengths=lengths,
        is_causal=causal,
        implementation="cudnn",
    )
    return out.reshape(q.shape)
