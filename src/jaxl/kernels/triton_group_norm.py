"""Group normalisation by Triton kernels, written in Pallas, for NVIDIA's GPUs.

`moments` reads a picture once for its statistics, where XLA reads it twice, and leaves the rest to XLA. `slab` does the
whole norm in one launch where a group's part of a picture, a slab, stays in the first-level cache, so that memory is
read once and written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxl.kernels.by_image import by_image

# A program of `moments` holds TILE values in registers (64 in each of 256 threads), of TILE_CHANNELS channels:
# 256 bytes or more that lie together.
TILE = 2**14
TILE_CHANNELS = 128
# A program of `slab` reads its slab three times, so the slab should fit the first-level cache (256 KiB on H100, 192 on
# A100), and the channels of a group should fill a sector of memory.
SLAB_BYTES = 192 * 2**10
SECTOR_BYTES = 32
SLAB_TILE = 2**12
WARPS = 8


def takes_moments(x: Array) -> bool:
    """Return whether `moments` takes a picture [B, H, W, C]: channels in parts of a power of two, 32 or more."""
    return x.shape[-1] % 32 == 0 and x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)


def takes_slab(x: Array, groups: int) -> bool:
    """Return whether `slab` takes a picture [B, H, W, C]: a group's slab must be small, and not too thin."""
    _, h, w, c = x.shape
    thickness = c // groups * x.dtype.itemsize
    return h * w * thickness <= SLAB_BYTES and thickness >= SECTOR_BYTES and x.dtype != jnp.float64


def moments(x: Array, *, interpret: bool = False) -> tuple[Array, Array]:
    """[B, H, W, C] -> mean and variance by channel, float32 [B, C] each."""
    b, h, w, c = x.shape
    parts = by_image(partial(_moments, interpret=interpret), (x.reshape(b, h * w, c),))
    mean, square = (part.sum(1) / (h * w) for part in parts)
    return x[:, 0, 0].astype(jnp.float32) + mean, square - jnp.square(mean)


def slab(
    x: Array,
    weight: Array,
    bias: Array,
    added: Array | None,
    *,
    groups: int,
    eps: float,
    silu: bool,
    interpret: bool = False,
) -> Array:
    """[B, H, W, C], plus `added` [B, C], normalised over space and groups of channels, then maybe SiLU."""
    b, h, w, c = x.shape
    run = partial(_slab, groups=groups, eps=eps, silu=silu, interpret=interpret)
    images = (x.reshape(b, h * w, c), *([] if added is None else [added]))
    return by_image(run, images, (weight, bias)).reshape(x.shape)


def _moments(x: Array, *, interpret: bool) -> tuple[Array, Array]:
    """[B, N, C] -> for K parts of the N pixels the sums of their differences from the first one, and of the squares.

    Both [B, K, C]. A value of the data is near enough to their mean for the squares to lose no digits (Chan, Golub &
    LeVeque 1983, Am. Stat. 37, 242).
    """
    b, pixels, c = x.shape
    channels = math.gcd(c, TILE_CHANNELS)
    rows = TILE // channels
    parts = pl.cdiv(pixels, rows)

    def kernel(x_ref: Any, sum_ref: Any, square_ref: Any) -> None:
        part, image = pl.program_id(0), pl.program_id(2)
        row = part * rows + jnp.arange(rows)
        channel = pl.program_id(1) * channels + jnp.arange(channels)
        there = jnp.broadcast_to((row < pixels)[:, None], (rows, channels))
        tile = triton.load(x_ref.at[image, row[:, None], channel[None]], mask=there, other=0.0).astype(jnp.float32)
        first = triton.load(x_ref.at[image, 0, channel]).astype(jnp.float32)
        difference = jnp.where(there, tile - first, 0.0)
        triton.store(sum_ref.at[image, part, channel], difference.sum(0))
        triton.store(square_ref.at[image, part, channel], jnp.square(difference).sum(0))

    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((b, parts, c), jnp.float32)] * 2,
        grid=(parts, c // channels, b),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name="group_norm_moments",
    )(x)


def _slab(x: Array, *others: Array, groups: int, eps: float, silu: bool, interpret: bool) -> Array:
    """[B, N, C], maybe what is added [B, C], weight and bias [C] -> [B, N, C]."""
    b, pixels, c = x.shape
    thickness = c // groups
    columns = pl.next_power_of_2(thickness)
    rows = max(SLAB_TILE // columns, 1)

    def kernel(x_ref: Any, *refs: Any) -> None:
        *added_ref, weight_ref, bias_ref, out_ref = refs
        image = pl.program_id(1)
        within = jnp.arange(columns) < thickness
        channel = pl.program_id(0) * thickness + jnp.arange(columns)

        def load(ref: Any, *index: Any) -> Array:
            return triton.load(ref.at[*index, channel], mask=within, other=0.0).astype(jnp.float32)

        weight, bias = load(weight_ref), load(bias_ref)
        added = load(added_ref[0], image) if added_ref else jnp.zeros(columns)

        def tile(i: Array) -> tuple[Array, tuple[Array, ...], Array]:
            row = i * rows + jnp.arange(rows)
            there = (row < pixels)[:, None] & within[None]
            index = image, row[:, None], channel[None]
            return triton.load(x_ref.at[index], mask=there, other=0.0).astype(jnp.float32) + added, index, there

        def total(of: Callable[[Array], Array], mean: Array | float) -> Array:
            def step(i: Array, sums: Array) -> Array:
                values, _, there = tile(i)
                return sums + jnp.where(there, of(values - mean), 0.0)

            return lax.fori_loop(0, tiles, step, jnp.zeros((rows, columns))).sum() / (pixels * thickness)

        tiles = pl.cdiv(pixels, rows)
        mean = total(lambda values: values, 0.0)
        scale = weight * lax.rsqrt(total(jnp.square, mean) + eps)

        def write(i: Array, _: None) -> None:
            values, index, there = tile(i)
            y = (values - mean) * scale + bias
            y = y * jax.nn.sigmoid(y) if silu else y
            triton.store(out_ref.at[index], y.astype(out_ref.dtype), mask=there)

        lax.fori_loop(0, tiles, write, None)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(groups, b),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name="group_norm_slab",
    )(x, *others)
