"""A region of a picture with a prompt of its own, which cross-attention reads there in place of the image's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxl.call.control import check_number
from jaxl.errors import InputError

# of one image: each costs another reading of a text in every block
MOST_REGIONS = 16
# what files tell of one
FACTS = ("prompt", "box", "strength", "negative_prompt")
# between the prompt and the negative one in a text, as in A1111's settings
NEGATIVE = "Negative prompt:"
FORM = "give left,top,right,bottom or the file of a mask, then a colon and a prompt, such as 0,0,0.5,1: a cat"


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that has a prompt of its own.

    prompt: what is there, for both text encoders.
    box: (left, top, right, bottom), as shares of the image if none is above 1, else in pixels.
    mask: in place of a box, a picture of the image's shape, white where the region is; greys count in part.
    negative_prompt: what is not to be there; by default the image's own.
    strength: 0 to 1, by how much the region's texts replace the image's own. Where regions overlap and their strengths
        add up to more than 1, they share the place in proportion.

    Raises InputError for values that cannot work.
    """

    prompt: str
    box: Sequence[float] | None = None
    mask: Any = None
    negative_prompt: str | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise InputError("prompt", self.prompt, "of a region: give a text")
        whose = f"of region {self.prompt!r}"
        if not isinstance(self.negative_prompt, str | None):
            raise InputError("negative_prompt", self.negative_prompt, f"{whose}: give a text")
        check_number("strength", self.strength, 1.0, whose)
        if (self.box is None) == (self.mask is None):
            raise InputError("box", self.box, f"{whose}: give either a box or a mask")
        if self.box is not None:
            read_box(self.box, whose)

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read `BOX_OR_MASK[@STRENGTH]: PROMPT`, which may go on with `Negative prompt: ...`.

        A mask is the name of a file. Raises InputError.
        """
        where, colon, prompt = text.partition(":")
        where, at, strength = where.strip().rpartition("@")
        where = where if at else strength
        prompt, negative, not_wanted = prompt.partition(NEGATIVE)
        if not (where and colon and prompt.strip()):
            raise InputError("region", text, FORM)
        try:
            factor = float(strength) if at else 1.0
            box = [float(side) for side in where.split(",")] if "," in where else None
        except ValueError:
            raise InputError("region", text, FORM) from None
        from jaxl.call.images import read_image  # the command's help does without pictures

        mask = read_image(where, "region") if box is None else None
        return cls(prompt.strip(), box, mask, not_wanted.strip() if negative else None, factor)

    def in_shares(self, width: int, height: int) -> Region:
        """Return the region for another size of an image, of which this is the one that a box in pixels is about."""
        if self.box is None or max(self.box) <= 1:
            return self
        sides = zip(self.box, (width, height) * 2, strict=True)
        return replace(self, box=[min(side / whole, 1.0) for side, whole in sides])

    @property
    def facts(self) -> dict[str, Any]:
        """What it is but its mask, as settings in files have it."""
        own = {"prompt": self.prompt, "strength": self.strength}
        own |= {} if self.box is None else {"box": [float(side) for side in self.box]}
        return own | ({} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt})


def read_box(box: Sequence[float], whose: str) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom. Raises InputError for what is no box; `whose` it is begins the remedy."""
    try:
        left, top, right, bottom = sides = tuple(float(side) for side in box)
    except (TypeError, ValueError):
        sides = left, top, right, bottom = (math.nan,) * 4
    if not (all(map(math.isfinite, sides)) and 0 <= left < right and 0 <= top < bottom):
        remedy = "give left, top, right and bottom, from 0 on, such as (0, 0, 0.5, 1) for the left half"
        raise InputError("box", box, f"{whose}: {remedy}")
    return left, top, right, bottom


def in_pixels(box: Sequence[float], width: int, height: int, whose: str) -> tuple[int, int, int, int]:
    """Return a box in pixels of a picture, of which its sides are shares if none is above 1.

    Raises InputError for a box that the picture does not hold; `whose` it is begins the remedy.
    """
    sides = read_box(box, whose)
    scales = (width, height) * 2 if max(sides) <= 1 else (1,) * 4
    left, top, right, bottom = (round(side * scale) for side, scale in zip(sides, scales, strict=True))
    if right > width or bottom > height:
        raise InputError("box", box, f"{whose}: the picture is {width}x{height}; give a box within it")
    if left == right or top == bottom:
        raise InputError("box", box, f"{whose}: it holds no pixel; make it larger")
    return left, top, right, bottom
