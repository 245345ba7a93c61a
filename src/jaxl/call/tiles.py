"""The tiles of a call, and the sizes of images that can be drawn in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxl.call import arguments
from jaxl.call.options import TiledDiffusion
from jaxl.call.starts import SourceImage
from jaxl.errors import InputError
from jaxl.run.model import Model
from jaxl.run.tiles import Tiles


def read_tiles(options: TiledDiffusion, model: Model) -> Tiles | None:
    """Return the tiles that are asked for. Raises InputError."""
    size, overlap, step = options.get("tile_size"), options.get("tile_overlap"), model.multiple
    if size is None:
        if overlap is not None:
            raise InputError("tile_overlap", overlap, "there are no tiles; give `tile_size` too")
        return None
    size = arguments.image_size("tile_size", size, 0, step)
    if size == step:
        raise InputError("tile_size", size, f"a tile has to be larger than {step} pixels")
    return Tiles(size, read_overlap(overlap, size, step))


def read_overlap(overlap: int | None, size: int, step: int) -> int:
    """Return the pixels that neighbours share, a multiple of `step`. Raises InputError."""
    asked = size // 4 if overlap is None else overlap
    remedy = f"give a whole number from 0 to {size - step}, less than the tile's {size}"
    least = arguments.whole_number("tile_overlap", asked, least=0, most=size - step, remedy=remedy)
    return -(-least // step) * step


def own_size(sources: Sequence[SourceImage] | None, model: Model) -> tuple[int, int] | None:
    """Return width and height of an image in tiles that starts from a picture, by that: what tiles can cover of it."""
    if not sources or isinstance(sources[0], np.ndarray):
        return None
    width, height = (max(side // model.multiple, 1) * model.multiple for side in sources[0].size)
    return width, height


def tiles_for(tiles: Tiles | None, width: int, height: int, model: Model) -> Tiles | None:
    """Return the tiles of an image, none where it has no more pixels than one.

    Raises InputError for sides that end within a place of the U-Net's lowest level.
    """
    if tiles is None or width * height <= tiles.size**2:
        return None
    for name, side in (("width", width), ("height", height)):
        if side % model.multiple:
            lower = side - side % model.multiple
            near = f"{lower} or {lower + model.multiple}"
            raise InputError(name, side, f"in tiles it has to be a multiple of {model.multiple}, such as {near}")
    return tiles
