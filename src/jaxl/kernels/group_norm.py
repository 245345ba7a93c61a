"""Group normalisation (Wu & He 2018, arXiv:1803.08494)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxl.kernels import XLA, Kernels, by_rows


def group_norm(
    p: Mapping[str, Any],
    x: Array,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    added: Array | None = None,
    skip: Array | None = None,
    kernels: Kernels = XLA,
) -> Array:
    """Normalise [B, H, W, C] over space and groups of channels, then maybe SiLU; statistics are float32.

    `added` [B, C] is added to every pixel of `x` first. `skip` [B, H, W, S] stands behind `x` on the channel axis, and
    groups may reach across the seam; the result is [B, H, W, C+S]. This way neither the sum nor the concatenation is
    written to memory before it is normalised.
    """
    parts = [x] if skip is None else [x, skip]
    if kernels.group_norm == "triton":
        from jaxl.kernels import triton_group_norm as triton  # Pallas takes a third of a second to import

        if skip is None and by_rows.devices() == 1 and triton.takes_slab(x, groups):
            return triton.slab(x, p["weight"], p["bias"], added, groups=groups, eps=eps, silu=silu)
    scale, shift = scale_and_shift(p, parts, groups, eps, added=added, kernels=kernels)
    out, first = [], 0
    for part in parts:
        own = slice(first, first := first + part.shape[-1])
        f = part.astype(jnp.float32) * scale[:, None, None, own] + shift[:, None, None, own]
        out.append((jax.nn.silu(f) if silu else f).astype(x.dtype))
    return out[0] if skip is None else jnp.concatenate(out, axis=-1)


def scale_and_shift(
    p: Mapping[str, Any],
    parts: Sequence[Array],
    groups: int,
    eps: float,
    *,
    added: Array | None = None,
    kernels: Kernels = XLA,
) -> tuple[Array, Array]:
    """Return the norm of pictures [B, H, W, C], joined on the channel axis, as a scale and a shift.

    Both are float32 [B, C]; `added` is as in `group_norm`.
    """
    by_channel = moments
    if kernels.group_norm == "triton":
        from jaxl.kernels import triton_group_norm as triton

        if all(map(triton.takes_moments, parts)):
            by_channel = triton.moments
    if kernels.group_norm == "tpu":
        from jaxl.kernels import tpu_conv as tpu

        if all(map(tpu.takes_moments, parts)):
            by_channel = tpu.moments
    own = (jnp.concatenate(each, axis=-1) for each in zip(*map(by_channel, parts), strict=True))
    mean, variance = by_rows.moments(*own)
    c = mean.shape[-1]
    if added is not None:
        added = jnp.pad(added.astype(jnp.float32), ((0, 0), (0, c - added.shape[-1])))
        mean = mean + added

    def over_groups(means: Array) -> Array:
        """Means by channel [B, C] -> the means of their groups, [B, C]."""
        return jnp.repeat(means.reshape(-1, groups, c // groups).mean(-1), c // groups, axis=-1)

    centre = over_groups(mean)
    scale = lax.rsqrt(over_groups(variance + jnp.square(mean - centre)) + eps) * p["weight"].astype(jnp.float32)
    shift = centre if added is None else centre - added
    return scale, p["bias"].astype(jnp.float32) - shift * scale


def moments(x: Array) -> tuple[Array, Array]:
    """[B, H, W, C] -> mean and variance by channel, float32 [B, C] each.

    It is by channel, because reducing rows of channels needs no other layout than the picture's.
    """
    f = x.astype(jnp.float32)
    mean = f.mean((1, 2))
    return mean, jnp.square(f - mean[:, None, None]).mean((1, 2))
