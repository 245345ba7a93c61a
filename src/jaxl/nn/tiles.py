"""Large images, encoded and decoded in tiles that overlap: the memory of one tile beside the image.

A tile does not see what lies beyond it, and its norms take their statistics from it alone, so the result is not that of
the whole image; benchmarks/vae_tiles.py measures by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxl.config import VAEConfig
from jaxl.errors import InputError
from jaxl.kernels import XLA, Kernels
from jaxl.nn.layers import Params
from jaxl.nn.vae import decode, encode


def decode_tiled(
    params: Params, cfg: VAEConfig, latents: Array, tile: int, overlap: int | None = None, kernels: Kernels = XLA
) -> Array:
    """`decode` in tiles of `tile` by `tile` pixels, neighbours of which share `overlap` pixels or more, or a quarter.

    An image that is no larger than a tile is decoded whole. InputError unless both are multiples of the pixels per
    latent and `overlap` is smaller than `tile`.
    """
    run = partial(decode, params, cfg, kernels=kernels)
    return _in_tiles(run, latents, *_in_latents(cfg, tile, overlap), 1, cfg.factor)


def encode_tiled(
    params: Params, cfg: VAEConfig, images: Array, tile: int, overlap: int | None = None, kernels: Kernels = XLA
) -> tuple[Array, Array]:
    """`encode` in tiles, which are as in `decode_tiled`."""

    def run(images: Array) -> Array:
        return jnp.concatenate(encode(params, cfg, images, kernels), axis=-1)

    moments = _in_tiles(run, images, *_in_latents(cfg, tile, overlap), cfg.factor, 1)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, log_variance


def _in_latents(cfg: VAEConfig, tile: int, overlap: int | None) -> tuple[int, int]:
    if tile < 1 or tile % cfg.factor:
        raise InputError("tile", tile, f"give a multiple of {cfg.factor} pixels")
    if overlap is None:
        return tile // cfg.factor, tile // cfg.factor // 4
    if not 0 <= overlap < tile or overlap % cfg.factor:
        raise InputError("overlap", overlap, f"give a multiple of {cfg.factor} pixels, less than the tile's {tile}")
    return tile // cfg.factor, overlap // cfg.factor


def _in_tiles(run: Callable[[Array], Array], x: Array, tile: int, overlap: int, inputs: int, outputs: int) -> Array:
    """`run` on every tile of x [B, H, W, C], one at a time, and the results put together again.

    A latent is `inputs` pixels of x each way and `outputs` pixels of the result; `tile` and `overlap` count latents.
    """
    batch, *sizes, channels = x.shape
    spans = [min(tile, size // inputs) for size in sizes]
    starts = [tile_starts(size // inputs, tile, overlap) for size in sizes]
    if all(len(each) == 1 for each in starts):
        return run(x)
    row_weights, column_weights = (
        jnp.array(tile_weights(each, span, outputs)) for each, span in zip(starts, spans, strict=True)
    )
    rows, columns = (jnp.array(each) for each in starts)

    def add(n: Array, image: Array) -> Array:
        i, j = n // len(columns), n % len(columns)
        part = lax.dynamic_slice(
            x, (0, rows[i] * inputs, columns[j] * inputs, 0), (batch, *(span * inputs for span in spans), channels)
        )
        part = run(part) * row_weights[i][:, None, None] * column_weights[j][:, None]
        place = (0, rows[i] * outputs, columns[j] * outputs, 0)
        return lax.dynamic_update_slice(image, lax.dynamic_slice(image, place, part.shape) + part, place)

    one = jax.eval_shape(run, jax.ShapeDtypeStruct((batch, *(span * inputs for span in spans), channels), x.dtype))
    whole = (batch, *(size // inputs * outputs for size in sizes), one.shape[-1])
    return lax.fori_loop(0, len(rows) * len(columns), add, jnp.zeros(whole, one.dtype))


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin, spread evenly: the first at one border, the last flush with the other."""
    if size <= tile:
        return [0]
    steps = -(-(size - tile) // (tile - overlap))
    return [i * (size - tile) // steps for i in range(steps + 1)]


def tile_weights(starts: list[int], tile: int, scale: int, margin: int = 0) -> np.ndarray:
    """What each pixel of each tile counts, [tiles, tile * scale] float32; a place's weights sum to 1 over the tiles.

    They fall linearly over all that two neighbours share, so that no tile ends in a step; but for a `margin` at either
    end, where one of them counts for nothing. That has to be less than half of what they share.
    """
    length = tile * scale
    shared = length - scale * max((b - a for a, b in pairwise(starts)), default=0)
    rise = ((np.arange(length) + 0.5 - margin * scale) / max(shared - 2 * margin * scale, 1)).clip(0.0, 1.0)
    weights = np.ones((len(starts), length))
    weights[1:] *= rise
    weights[:-1] *= rise[::-1]
    total = np.zeros(starts[-1] * scale + length)
    places = [slice(start * scale, start * scale + length) for start in starts]
    for place, weight in zip(places, weights, strict=True):
        total[place] += weight
    return np.stack([weight / total[place] for place, weight in zip(places, weights, strict=True)]).astype(np.float32)
