"""Pictures that the U-Net sees tile by tile, and its estimates put together (Bar-Tal et al. 2023, arXiv:2302.08113)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxl.nn.tiles import tile_starts, tile_weights
from jaxl.run.sharding import devices_at_hand

T = TypeVar("T")


@dataclass(frozen=True)
class Tiles:
    """Squares of `size` pixels that a picture is covered with; neighbours share `overlap` pixels or more.

    They end where the picture does, if it is narrower. Both numbers, and the sides of the picture, are multiples of the
    pixels that a place has at the U-Net's lowest level (`Model.multiple`), so that a tile has whole places at all.
    """

    size: int
    overlap: int

    def layout(self, height: int, width: int, factor: int, multiple: int) -> Layout:
        """Return where they are in a picture, in latents of so many pixels, `factor`."""
        units = [side // multiple for side in (height, width)]
        begin = [tile_starts(side, self.size // multiple, self.overlap // multiple) for side in units]
        rows, columns = (tuple(start * multiple // factor for start in own) for own in begin)
        return Layout(min(self.size, height) // factor, min(self.size, width) // factor, rows, columns)


@dataclass(frozen=True)
class Layout:
    """Tiles of `height` and `width`, where their `rows` and `columns` begin in a picture; all in latents."""

    height: int
    width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)

    def cut(self, whole: T, top: Array, left: Array) -> T:
        """Return the part of arrays [E, H, W, ...] that a tile has, whatever level of the U-Net they are for."""
        last = self.rows[-1] + self.height

        def part(a: Array) -> Array:
            step = last // a.shape[1]  # a place's side, in latents
            sizes = (a.shape[0], self.height // step, self.width // step, *a.shape[3:])
            return lax.dynamic_slice(a, (0, top // step, left // step, *[0] * (a.ndim - 3)), sizes)

        return jax.tree.map(part, whole)


def in_tiles(
    network: Callable[[Any, Any, Array | None], tuple[Array, Array]],
    layout: Layout,
    told: Any,
    pictures: Any,
    features: Array | None,
    channels: int,
) -> tuple[Array, Array | None]:
    """Return what a network makes of pictures tile by tile, [E, h, w, C] float32, and its features [E, tiles, ...].

    The network is `told` arrays [E, ...] of each tile, which has its own part of the `pictures` [E, ...] and of the
    features of the row before, if any. A place has the mean of all tiles that it is in, each of which counts less
    towards its border. So many tiles are worked on at a time that each device has an evaluation.
    """
    devices, evaluations = devices_at_hand(), len(jax.tree.leaves(pictures)[0])
    at_once = min(devices // math.gcd(devices, evaluations), layout.count)
    told = jax.tree.map(lambda a: jnp.concatenate([a] * at_once), told)
    down, across = (
        jnp.array(tile_weights(list(starts), length, 1))
        for starts, length in ((layout.rows, layout.height), (layout.columns, layout.width))
    )
    rows, columns = jnp.array(layout.rows), jnp.array(layout.columns)

    def add(n: Array, state: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        made, kept = state
        # the last ones may have been there before, and count for nothing then
        first = jnp.minimum(n * at_once, layout.count - at_once)
        numbers = [first + k for k in range(at_once)]
        places = [(number // len(columns), number % len(columns)) for number in numbers]
        parts = [layout.cut(pictures, rows[i], columns[j]) for i, j in places]
        before = None if features is None else _merged(lax.dynamic_slice_in_dim(features, first, at_once, axis=1))
        out, deep = network(told, jax.tree.map(lambda *each: jnp.concatenate(each), *parts), before)
        for number, (i, j), own in zip(numbers, places, jnp.split(out.astype(jnp.float32), at_once), strict=True):
            weight = jnp.where(number < n * at_once, 0.0, down[i][:, None, None] * across[j][:, None])
            place = (0, rows[i], columns[j], 0)
            made = lax.dynamic_update_slice(made, lax.dynamic_slice(made, place, own.shape) + weight * own, place)
        if kept is not None:
            deep = jnp.moveaxis(deep.reshape(at_once, evaluations, *deep.shape[1:]), 0, 1)
            kept = lax.dynamic_update_slice_in_dim(kept, deep, first, axis=1)
        return made, kept

    canvas = (evaluations, layout.rows[-1] + layout.height, layout.columns[-1] + layout.width, channels)
    return lax.fori_loop(0, -(-layout.count // at_once), add, (jnp.zeros(canvas, jnp.float32), features))


def _merged(a: Array) -> Array:
    """Return [E, N, ...] as [N * E, ...]."""
    return jnp.moveaxis(a, 1, 0).reshape(-1, *a.shape[2:])
