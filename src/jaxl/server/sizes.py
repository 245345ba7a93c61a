"""Sizes that clients ask for, and sizes that are drawn for them: a server draws only sizes that it has compiled.

The size drawn is the nearest in shape, and of equal ones in area. The drawn picture is scaled until it covers the size
asked for, and cut at both ends: nothing is distorted. Sizes are (width, height).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from jaxl.call.sizes import Size, nearest_size, read_aspect, stretch
from jaxl.errors import InputError

Policy = Literal["nearest", "strict"]

# the most pixels of a scaled picture, unless larger ones are drawn
MOST_PIXELS = 2048 * 2048
# the most that the aspect asked for may differ from the drawn one, as a factor: at 2 half of the picture is cut off
MOST_CUT = 4.0
# shapes that differ by less, as a factor, are taken for the same: of SDXL's sizes 1344x768 is 16:9
NEAR = 1.05


def as_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def drawn_for(wanted: Size, sizes: Sequence[Size], policy: Policy) -> Size:
    """Return the one of `sizes` that is drawn for a size. Raises InputError if there is none."""
    if wanted in sizes:
        return wanted
    width, height = wanted
    shown = ", ".join(map(as_text, sizes))
    if policy == "strict":
        name = "height" if width in {width for width, _ in sizes} else "width"
        raise InputError(name, wanted[name == "height"], f"this server draws {shown}; ask for one of these")
    for name, side in (("width", width), ("height", height)):
        if side < 8 or side % 8:
            raise InputError(name, side, "give a multiple of 8")
    drawn = nearest_size(wanted, sizes)
    most = max(MOST_PIXELS, drawn[0] * drawn[1])
    long = "width" if width > height else "height"
    if width * height > most:
        raise InputError(long, max(wanted), f"{as_text(wanted)} are too many pixels; ask for at most {most} in all")
    if stretch(wanted, drawn) > MOST_CUT:
        raise InputError(
            long, max(wanted), f"this server draws {shown}; ask for a shape that is nearer to one of these"
        )
    return drawn


def shaped(param: str, aspect: str, sizes: Sequence[Size]) -> Size:
    """Return the one of `sizes` that is nearest to an aspect such as "16:9", or the largest within it of the aspect.

    Its sides are multiples of 8 then. Raises InputError, naming `param`.
    """
    wanted = read_aspect(param, aspect)
    drawn = nearest_size(wanted, sizes)
    if stretch(wanted, drawn) <= NEAR:
        return drawn
    scale = min(side / own for side, own in zip(drawn, wanted, strict=True))
    width, height = (max(int(own * scale) // 8, 1) * 8 for own in wanted)
    return width, height


def fitted(drawn: Image.Image, wanted: Size) -> Image.Image:
    """Return the drawn picture scaled to cover a size, and cut to it around its middle."""
    return drawn if drawn.size == wanted else ImageOps.fit(drawn, wanted, Image.Resampling.LANCZOS)


def framed(picture: Image.Image, wanted: Size, drawn: Size) -> Image.Image:
    """Return a picture at the size drawn, such that `fitted` gives back the picture stretched to the size wanted.

    The part that `fitted` cuts off repeats the picture's edges, or is black around a mask, which has mode L.
    """
    scale = max(wanted[0] / drawn[0], wanted[1] / drawn[1])
    width, height = (max(round(side / scale), 1) for side in wanted)
    inner = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    left, top = (drawn[0] - width) // 2, (drawn[1] - height) // 2
    around = [(top, drawn[1] - height - top), (left, drawn[0] - width - left), *([(0, 0)] * (inner.ndim - 2))]
    return Image.fromarray(np.pad(inner, around, "constant" if picture.mode == "L" else "edge"))
