"""Pictures enlarged, by a network or by resampling: `jaxl.upscale`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jaxl.call.images import MAX_PIXELS, read_image
from jaxl.errors import InputError, nearest

# jax takes a second to import, and the server does without
if TYPE_CHECKING:
    from jaxl.run.upscaler import Upscaler

Told = Callable[[int, int], None]
Size = tuple[int, int]  # width, height

# those that need no network
RESAMPLINGS: Mapping[str, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
MOST_SCALE = 16.0


def upscale(
    image: Any,
    upscaler: Upscaler | str,
    scale: float | None = None,
    *,
    progress: Told | None = None,
) -> Image.Image:
    """Return a picture made larger, or smaller.

        jaxl.upscale("photo.png", jaxl.Upscaler.from_file("RealESRGAN_x4plus.pth"), 2)

    image: a path, a PIL image, or an array.
    upscaler: a network, loaded by `Upscaler.from_file`, or "lanczos" or "nearest".
    scale: by which each side is multiplied, up to 16; the network's own by default. Lanczos brings what the network
        makes to it. Where one pass of a network is not enough, the next one begins from as many pixels as it needs.
    progress: called with tiles done, and tiles in all, in each pass.

    Raises InputError, and NonFiniteError for a network that is damaged.
    """
    known = check_upscaler(upscaler)
    if scale is None and not isinstance(known, str):
        scale = known.scale
    factor, picture = check_scale("scale", scale), read_image(image, "image")
    return enlarged(picture, known, scaled_size(picture.size, factor), "scale", MAX_PIXELS, progress)


def check_upscaler(upscaler: Upscaler | str) -> Upscaler | str:
    """Return an upscaler as it is. Raises InputError for a name that there is not."""
    if isinstance(upscaler, str) and upscaler not in RESAMPLINGS:
        remedy = f"{nearest(upscaler, RESAMPLINGS)}, or the file of a network"
        raise InputError("upscaler", upscaler, remedy)
    return upscaler


def check_scale(argument: str, scale: Any) -> float:
    """Return how many times a side is to be as long. Raises InputError, naming `argument`."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= MOST_SCALE:
        raise InputError(argument, scale, f"give a number above 0, up to {MOST_SCALE:g}")
    return float(scale)


def scaled_size(size: Size, factor: float) -> Size:
    """Return the size of a picture that is so many times as large."""
    width, height = (max(round(side * factor), 1) for side in size)
    return width, height


def enlarged(
    picture: Image.Image,
    upscaler: Upscaler | str,
    size: Size,
    argument: str,
    max_pixels: int,
    progress: Told | None = None,
) -> Image.Image:
    """Return a picture in mode RGB in another size.

    Raises InputError, naming `argument`, for more than `max_pixels`, also where only the network makes so many.
    """
    check_pixels(picture.size, None if isinstance(upscaler, str) else upscaler.scale, size, argument, max_pixels)
    if isinstance(upscaler, str):
        return picture.resize(size, RESAMPLINGS[upscaler])
    made = upscaled_once(picture, upscaler, progress)
    while upscaler.scale > 1 and (made.width < size[0] or made.height < size[1]):
        start = (
            min(made.width, math.ceil(size[0] / upscaler.scale)),
            min(made.height, math.ceil(size[1] / upscaler.scale)),
        )
        made = upscaled_once(made.resize(start, Image.Resampling.LANCZOS), upscaler, progress)
    return made.resize(size, Image.Resampling.LANCZOS)  # of the same size it is a copy


def check_pixels(size: Size, scale: int | None, wanted: Size, argument: str, max_pixels: int) -> None:
    """Raise InputError, naming `argument`, if a picture has more pixels once it is enlarged, or on the way there."""
    made = size if scale is None else (size[0] * scale, size[1] * scale)
    for width, height in (wanted, made):
        if width * height > max_pixels:
            shown = f"{width}x{height}"
            raise InputError(argument, shown, f"at most {max_pixels} pixels in all; give less, or a smaller picture")


def upscaled_once(picture: Image.Image, upscaler: Upscaler, progress: Told | None = None) -> Image.Image:
    """Return what one pass of a network makes of a picture in mode RGB."""
    (made,) = upscaler(np.asarray(picture)[None], progress)
    return Image.fromarray((made * 255.0).round().astype(np.uint8))
