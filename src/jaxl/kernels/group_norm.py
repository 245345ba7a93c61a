"""Group normalisation (Wu & He 2018, arXiv:1803.08494)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxl.kernels import XLA, Kernels


def group_norm(
    p: Mapping[str, Any], x: Array, groups: int, eps: float, *, silu: bool = False, kernels: Kernels = XLA
) -> Array:
    """Normalise [B, H, W, C] over space and groups of channels, then maybe SiLU; statistics are float32."""
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
