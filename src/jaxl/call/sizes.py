"""Sizes of images that SDXL knows, and batch sizes of compiled programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from jaxl.errors import InputError

__all__ = ["BUCKETS", "aspect_bucket", "buckets_for", "nearest_bucket"]

Size = tuple[int, int]  # width, height

NATIVE_SIDE = 1024

BUCKETS: tuple[Size, ...] = (
    *((2048, 512), (1984, 512), (1920, 512), (1856, 512)),
    *((1792, 576), (1728, 576), (1664, 576)),
    *((1600, 640), (1536, 640)),
    *((1472, 704), (1408, 704), (1344, 704)),
    *((1344, 768), (1280, 768)),
    *((1216, 832), (1152, 832)),
    *((1152, 896), (1088, 896)),
    *((1088, 960), (1024, 960)),
    (1024, 1024),
    *((960, 1024), (960, 1088)),
    *((896, 1088), (896, 1152)),
    *((832, 1152), (832, 1216)),
    *((768, 1280), (768, 1344)),
    *((704, 1408), (704, 1472)),
    *((640, 1536), (640, 1600)),
    *((576, 1664), (576, 1728), (576, 1792)),
    *((512, 1856), (512, 1920), (512, 1984), (512, 2048)),
)
"""The 40 sizes of SDXL's multi-aspect training (Podell et al. 2023, arXiv:2307.01952, appendix I), as (width, height).

Each has about 1024**2 pixels. The paper lists height and width. It has 1344x704, but not 704x1344.
"""


def buckets_for(side: int, factor: int = 8) -> tuple[Size, ...]:
    """Return SDXL's sizes for a model of native size `side`, in multiples of `factor`, the VAE's pixels per latent.

    A scaled side is rounded to the nearest multiple: native sides that divide 1024 need no rounding, as 256 gives
    multiples of 16. Where rounding makes two sizes equal, one is left.
    """
    scaled = [(_scaled(width, side, factor), _scaled(height, side, factor)) for width, height in BUCKETS]
    return tuple(dict.fromkeys(scaled))


def nearest_bucket(width: float, height: float, side: int = NATIVE_SIDE) -> Size:
    """Return the size, of a model whose native size is `side`, whose shape is nearest to that of `width` x `height`."""
    return nearest_size((width, height), buckets_for(side))


def nearest_size(wanted: tuple[float, float], sizes: Iterable[Size]) -> Size:
    """Return the size whose shape is nearest; of equal shapes, the one whose area is."""

    def distance(size: Size) -> tuple[float, float]:
        areas = size[0] * size[1], wanted[0] * wanted[1]
        return stretch(wanted, size), max(areas) / min(areas)

    return min(sizes, key=distance)


def stretch(size: tuple[float, float], other: tuple[float, float]) -> float:
    """Return how many times longer than the other's the longer side of one is, where the shorter ones are equal.

    It is at least 1, and the same for landscape and portrait.
    """
    ratio = size[0] / size[1] / (other[0] / other[1])
    return max(ratio, 1 / ratio)


def aspect_bucket(argument: str, value: Any, side: int = NATIVE_SIDE) -> Size:
    """Return the size for an aspect such as "16:9", "3:2" or "2.39:1", width first, from 1:4 to 4:1.

    Raises InputError, naming `argument`.
    """
    return nearest_bucket(*read_aspect(argument, value), side)


def read_aspect(argument: str, value: Any) -> tuple[float, float]:
    """Return the width and height of an aspect, as `aspect_bucket` takes it. Raises InputError, naming `argument`."""
    number = r"([0-9]{1,6}(?:\.[0-9]{1,6})?)"
    match = re.fullmatch(f"{number}:{number}", value) if isinstance(value, str) else None
    width, height = (Fraction(number) for number in match.groups()) if match else (0, 0)
    if not width or not height:
        raise InputError(argument, value, "give width and height as in 16:9, 3:2 or 1:1")
    if not Fraction(1, 4) <= Fraction(width) / height <= 4:
        raise InputError(argument, value, "SDXL's sizes go from 1:4 to 4:1; give an aspect between them")
    return float(width), float(height)


def read_size(text: str) -> Size | None:
    """Return width and height of a text such as 1024x768, or None where it is not like that."""
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", text)
    return (int(match[1]), int(match[2])) if match else None


def check_size(argument: str, text: str, more: str = "", *, least: int = 0) -> Size:
    """Return width and height of such a text. Raises InputError, whose remedy may say `more`."""
    size = read_size(text)
    if size is None or min(size) < least:
        raise InputError(argument, text, f"give WIDTHxHEIGHT in pixels, such as 1024x768{more}")
    return size


def smallest_that_fits(batch: int, sizes: Sequence[int]) -> int:
    """Return the smallest allowed batch size that holds `batch` images, or the largest of all if none does."""
    return min((size for size in sizes if size >= batch), default=max(sizes))


def rounds(images: int, sizes: Sequence[int]) -> list[int]:
    """Return how many images each dispatch draws: the fewest dispatches, and among these the least padding.

    Each runs at the size of `smallest_that_fits`; all but the last are full.
    """
    largest = max(sizes)
    count = -(-images // largest)
    spare = count * largest - images
    # the places that each size saves against the largest; for each possible total, the fewest savings that add up to it
    savings = sorted({largest - size for size in sizes} - {0})
    fewest: dict[int, list[int]] = {0: []}
    for total in range(1, spare + 1):
        ways = [[*fewest[total - saving], saving] for saving in savings if total - saving in fewest]
        if ways:
            fewest[total] = min(ways, key=len)
    saved = max(total for total, parts in fewest.items() if len(parts) <= count)
    batches = [largest] * (count - len(fewest[saved])) + [largest - saving for saving in sorted(fewest[saved])]
    if batches:
        batches[-1] -= spare - saved
    return batches


def _scaled(length: int, side: int, factor: int) -> int:
    return max((2 * length * side + NATIVE_SIDE * factor) // (2 * NATIVE_SIDE * factor), 1) * factor
