"""Does a picture show what was asked for? Nearest concepts by colour, outline and edges on a small raster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from drawing import draw_scenes, palette
from scenes import CENTRE, SIZE, Item, Scene

RASTER = 40
MIN_DIFFERENCE = 0.12  # from the background's colour, for a pixel to belong to an item
BATCH = 64
HALF = SIZE // 2


@dataclass
class Tally:
    """Counts over the named items of some pictures."""

    items: int = 0
    first: int = 0
    among_five: int = 0
    background: int = 0

    def __str__(self) -> str:
        shares = (
            f"{label} {n / self.items:.2f}"
            for label, n in (("top-1", self.first), ("top-5", self.among_five), ("background", self.background))
        )
        return f"items {self.items:3d} {' '.join(shares)}"


def item_features(images: Tensor) -> Tensor:
    """images [n, RGB, H, W] in 0..1 -> unit vectors [n, features] of what stands out from the background.

    The item's bounding box is brought to the raster first, so place and size do not count.
    """
    border = torch.cat([images[:, :, :6].flatten(2), images[:, :, -6:].flatten(2), images[:, :, :, :6].flatten(2)], 2)
    difference = images - border.median(2).values[:, :, None, None]
    strongest = difference.abs().amax(1, keepdim=True)
    mask = (functional.avg_pool2d(strongest, 5, stride=1, padding=2) > MIN_DIFFERENCE).float()
    grid = _box_grid(mask)
    colour = functional.avg_pool2d(functional.grid_sample(difference * mask, grid, align_corners=False), 2)
    colour = functional.avg_pool2d(colour, 3, stride=1, padding=1)
    outline = functional.avg_pool2d(functional.grid_sample(mask, grid, align_corners=False), 2)
    outline = outline - outline.mean((2, 3), keepdim=True)
    across, down = colour.diff(dim=3)[:, :, :-1], colour.diff(dim=2)[..., :-1]
    parts = (colour, 0.7 * outline, 2.0 * across, 2.0 * down)
    return functional.normalize(torch.cat([part.flatten(1) for part in parts], 1), eps=1e-6)


def _box_grid(mask: Tensor) -> Tensor:
    """The sampling grid that brings each mask's [n, 1, H, W] bounding box, made square, to twice the raster."""
    height, width = mask.shape[2:]
    left, right = _extent(mask[:, 0].sum(1) > 2)
    top, bottom = _extent(mask[:, 0].sum(2) > 2)
    side = 1.06 * torch.maximum(right - left, bottom - top).clamp(min=8)
    theta = torch.zeros(len(mask), 2, 3, device=mask.device)
    theta[:, 0, 0], theta[:, 0, 2] = side / width, (left + right) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = side / height, (top + bottom) / height - 1
    return functional.affine_grid(theta, [len(mask), 1, 2 * RASTER, 2 * RASTER], align_corners=False)


def _extent(covered: Tensor) -> tuple[Tensor, Tensor]:
    """First covered index and the one after the last, of each row of bools [n, length]; all of it where none is."""
    length = covered.shape[1]
    start = covered.float().argmax(1)  # 0 where none is covered, and then the end is the length
    end = length - covered.flip(1).float().argmax(1)
    return start.float(), end.float()


class Retrieval:
    """Ranks all concepts for the items of a picture, against the sprites drawn in its style on its background."""

    def __init__(self, sprites: Tensor):
        self.sprites = sprites
        self.colours = palette(sprites.device)
        self._references: dict[tuple[int, int, Item], Tensor] = {}

    def score(self, images: Tensor, scenes: Sequence[Scene]) -> Tally:
        """images [n, RGB, 256, 256] in 0..1 of plain scenes (one item in the middle, or two side by side)."""
        tally = Tally()
        for image, scene in zip(images, scenes, strict=True):
            right_background = self._nearest_colour(image) == scene.background
            for item in scene.items:
                rank = self._rank(image, scene, item)
                tally.items += 1
                tally.first += rank < 1
                tally.among_five += rank < 5
                tally.background += right_background
        return tally

    def _nearest_colour(self, image: Tensor) -> int:
        edge = torch.cat([image[:, :8].flatten(1), image[:, -8:].flatten(1)], 1).median(1).values
        return int((self.colours - edge).norm(dim=1).argmin())

    def _rank(self, image: Tensor, scene: Scene, item: Item) -> int:
        similarities = self._all_concepts(scene, item) @ item_features(_region(image[None], item))[0]
        return int((similarities > similarities[item.concept]).sum())

    def _all_concepts(self, scene: Scene, item: Item) -> Tensor:
        """The features of every concept in the item's place, [concept, features]."""
        place = replace(item, concept=0)
        key = (scene.background, scene.style, place)
        if key not in self._references:
            alone = [
                replace(scene, items=(replace(place, concept=concept),), relation="")
                for concept in range(len(self.sprites))
            ]
            batches = (alone[start : start + BATCH] for start in range(0, len(alone), BATCH))
            drawn = ((draw_scenes(self.sprites, batch) + 1) / 2 for batch in batches)
            self._references[key] = torch.cat([item_features(_region(images, item)) for images in drawn])
        return self._references[key]


def _region(images: Tensor, item: Item) -> Tensor:
    """The part of the images the item is in: all, or the left or right half; the picture's edge is on the left."""
    if item.x == CENTRE:
        return images
    return images[..., :HALF] if item.x < CENTRE else images[..., HALF:].flip(-1)
