"""The regions of each image: prompts of their own, and what share of each place they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxl.call.arguments import lists_per_image
from jaxl.call.controls import check_shape
from jaxl.call.images import fit, read_image
from jaxl.call.prompts import Chunk
from jaxl.call.region import MOST_REGIONS, Region, in_pixels
from jaxl.config import UNetConfig
from jaxl.errors import InputError
from jaxl.nn.unet import transformer_sizes
from jaxl.run.bucket import Branch
from jaxl.text.tags import read_tags


@dataclass(frozen=True, eq=False)
class PlannedRegion:
    """What cross-attention reads in a part of an image.

    `texts` are those of each branch by version, as chunks; `shares` [h, w] are of each size that transformers see.
    """

    texts: tuple[dict[Branch, list[Chunk] | None], ...]
    shares: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class AskedRegion:
    """A region with its mask, read."""

    region: Region
    mask: Image.Image | None


def read_regions(value: Any, syntax: str, images: int, each: int) -> list[list[AskedRegion]]:
    """Return what is asked for each image. `value` is a list for all images, or one for each image or prompt.

    A prompt has `each` images. Raises InputError for what is no region, for too many, for a mask that is none, and for
    a tag, in a `syntax` of prompts that has them.
    """

    def read(region: Region) -> AskedRegion:
        if read_tags(region.prompt, syntax, "regions")[1]:
            remedy = "LoRAs are for whole images; put the tag into the image's prompt"
            raise InputError("regions", region.prompt, remedy)
        return AskedRegion(region, None if region.mask is None else read_image(region.mask, "mask").convert("L"))

    asked = lists_per_image("regions", value, Region, read, images, each)
    if (most := max(map(len, asked))) > MOST_REGIONS:
        raise InputError("regions", f"{most} for an image", f"give at most {MOST_REGIONS}")
    return asked


def shares_of(
    asked: Sequence[AskedRegion], unet: UNetConfig, size: tuple[int, int], latents: tuple[int, int]
) -> list[tuple[np.ndarray, ...]]:
    """Return the share [h, w] of each region for each size that transformers see, [region][size].

    `size` is the image's (width, height), `latents` (height, width) those of its latents. Raises InputError for boxes
    that the image does not hold, and for masks of another shape, or black.
    """
    areas = []
    for each in asked:
        if each.mask is not None:
            check_shape("mask", each.mask, *size, f"the mask of region {each.region.prompt!r}")
        area = _area(each, *size)
        if not area.any():
            raise InputError("mask", "all black", f"of region {each.region.prompt!r}: paint white where it is")
        areas.append(area * np.float32(each.region.strength))
    whole = np.maximum(sum(areas, np.zeros(size[::-1], np.float32)), 1.0)
    return [
        tuple(_shrunk(area / whole, height, width) for height, width in transformer_sizes(unet, *latents))
        for area in areas
    ]


def _area(asked: AskedRegion, width: int, height: int) -> np.ndarray:
    """Return the share of each pixel [height, width] that a region has."""
    if asked.mask is not None:
        return np.asarray(fit(asked.mask, width, height), np.float32) / 255.0
    assert asked.region.box is not None  # it has one of the two
    whose = f"of region {asked.region.prompt!r}"
    left, top, right, bottom = in_pixels(asked.region.box, width, height, whose)
    area = np.zeros((height, width), np.float32)
    area[top:bottom, left:right] = 1.0
    return area


def _shrunk(area: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mean of an area [H, W] over each place [height, width]."""
    return np.asarray(Image.fromarray(area).resize((width, height), Image.Resampling.BOX), np.float32)
