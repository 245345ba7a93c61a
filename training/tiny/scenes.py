"""What can be in a picture: concepts, backgrounds, places, and a random sampler of scenes. Needs numpy only.

A scene is one thing, or two things side by side or one above the other, on a coloured background. Lengths are pixels
of the 256 x 256 picture. Some scenes are cut from a wider or taller picture or enlarged from a small one, so that the
model learns what SDXL's micro-conditioning says (Podell et al. 2023, arXiv:2307.01952, section 2.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SIZE = 256
STYLES = ("flat", "noto")
COLOURS = {
    "red": (222, 72, 72),
    "orange": (245, 150, 60),
    "yellow": (250, 218, 94),
    "green": (96, 186, 104),
    "teal": (52, 158, 156),
    "blue": (84, 140, 232),
    "purple": (146, 98, 206),
    "pink": (246, 162, 196),
    "brown": (140, 98, 70),
    "gray": (150, 154, 160),
    "white": (250, 250, 250),
    "black": (24, 24, 28),
}
COLOUR_NAMES = tuple(COLOURS)
PLAIN, RAMP, HALO = range(3)  # how a background's colour may change over the picture

CENTRE, NEAR, FAR = 128.0, 66.0, 190.0
PLACES = {  # what the first item is to the second -> where both are
    "to the left of": ((NEAR, CENTRE), (FAR, CENTRE)),
    "to the right of": ((FAR, CENTRE), (NEAR, CENTRE)),
    "above": ((CENTRE, NEAR), (CENTRE, FAR)),
    "below": ((CENTRE, FAR), (CENTRE, NEAR)),
}
RELATIONS = tuple(PLACES)
SIDE_BY_SIDE = RELATIONS[:2]

PAIR_SHARE = 0.3
CROPPED_SHARE, ENLARGED_SHARE = 0.12, 0.08
ENLARGED_FROM = (48, 64, 96, 128)
CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")


@dataclass(frozen=True)
class Concept:
    """A thing the model can draw: its icon's name and the noun phrases captions use for it ("an owl", "scissors")."""

    key: str
    phrases: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The phrases without their article."""
        return tuple(re.sub(r"^(an?|the) ", "", phrase) for phrase in self.phrases)


@dataclass(frozen=True)
class Item:
    """One concept (an index), drawn `size` wide and centred at (x, y)."""

    concept: int
    size: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """All a renderer and a caption need. `relation` is "" for one item; `tone` lightens (> 0) or darkens the far end
    of a shaded background; `enlarged_from` is the width of the small picture it was enlarged from, or 0."""

    style: int
    background: int
    shading: int
    tone: float
    items: tuple[Item, ...]
    relation: str = ""
    original_height: int = SIZE
    original_width: int = SIZE
    crop_top: int = 0
    crop_left: int = 0
    enlarged_from: int = 0

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's six numbers: original height and width, crop top and left, target height and width."""
        return self.original_height, self.original_width, self.crop_top, self.crop_left, SIZE, SIZE


def load_concepts(path: Path = CONCEPTS_FILE) -> list[Concept]:
    """Read lines of the form `key: phrase, phrase`. Their order matters: the held-out rules count on it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ") for line in lines)
    return [Concept(key, tuple(phrases.split(", "))) for key, phrases in pairs]


def is_held_out_single(concept: int, background: int) -> bool:
    """Whether training never shows this concept alone on this background (1 in 12 combinations)."""
    return (concept * 31 + background * 17) % 12 == 5


def is_held_out_pair(first: int, second: int) -> bool:
    """Whether training never shows these two concepts together, in either order (1 in 125 pairs)."""
    low, high = sorted((first, second))
    return (low * 1009 + high * 9176 + low * high) % 50 == 7


class SceneSampler:
    """Random training scenes. The same seed gives the same scenes; `rng` may also be drawn from in between."""

    def __init__(self, concepts: Sequence[Concept], seed: int):
        self.concepts = concepts
        self.rng = np.random.default_rng(seed)

    def draw(self, pair: bool | None = None) -> Scene:
        """A scene no held-out rule forbids, of two items (`pair`), of one, or by chance of either."""
        rng = self.rng
        if pair is None:
            pair = rng.random() < PAIR_SHARE
        style, first, background = (int(rng.integers(n)) for n in (len(STYLES), len(self.concepts), len(COLOURS)))
        shading = int(rng.choice((PLAIN, RAMP, HALO), p=(0.5, 0.25, 0.25)))
        scene = Scene(style, background, shading, tone=rng.uniform(-0.22, 0.22), items=())
        return self._reframed(self._two(scene, first) if pair else self._one(scene, first))

    def _one(self, scene: Scene, concept: int) -> Scene:
        background = scene.background
        while is_held_out_single(concept, background):
            background = int(self.rng.integers(len(COLOURS)))
        size = self.rng.uniform(150, 210)
        x, y = CENTRE + self.rng.uniform(-18, 18, 2)
        return replace(scene, background=background, items=(Item(concept, size, x, y),))

    def _two(self, scene: Scene, first: int) -> Scene:
        rng = self.rng
        second = int(rng.integers(len(self.concepts)))
        while second == first or is_held_out_pair(first, second):
            second = int(rng.integers(len(self.concepts)))
        relation = RELATIONS[rng.choice(len(RELATIONS), p=(0.4, 0.4, 0.1, 0.1))]
        sizes = rng.uniform(100, 124, 2)
        shifts = rng.uniform(-6, 6, (2, 2)) * (1, 3 if relation in SIDE_BY_SIDE else 1)
        centres = np.add(PLACES[relation], shifts)
        items = (Item(first, sizes[0], *centres[0]), Item(second, sizes[1], *centres[1]))
        return replace(scene, relation=relation, items=items)

    def _reframed(self, scene: Scene) -> Scene:
        """The scene as it is, or (by chance) as a crop of a larger picture or as an enlargement."""
        rng = self.rng
        chance = rng.random()
        if chance < CROPPED_SHARE:
            extra = int(rng.integers(32, 129))
            offset = int(rng.integers(0, extra + 1))
            shift = extra / 2 - offset  # what was in the middle of the larger picture
            if rng.random() < 0.5:
                items = tuple(replace(item, x=item.x + shift) for item in scene.items)
                return replace(scene, original_width=SIZE + extra, crop_left=offset, items=items)
            items = tuple(replace(item, y=item.y + shift) for item in scene.items)
            return replace(scene, original_height=SIZE + extra, crop_top=offset, items=items)
        if chance < CROPPED_SHARE + ENLARGED_SHARE:
            small = int(rng.choice(ENLARGED_FROM))
            return replace(scene, original_height=small, original_width=small, enlarged_from=small)
        return scene
