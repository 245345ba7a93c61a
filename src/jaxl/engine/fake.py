"""A backend without a model: it draws patterns, needs neither jax nor weights, and takes as long as it is told.

Its pictures depend on every row it was asked to run, so a row too many, too few, or of another image, shows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from jaxl.engine.backend import Lora, Mark, Served, Stage
from jaxl.errors import InputError, JaxlError, nearest

MOST_STEPS = 1000
UPSCALERS = ("4x-Sharp",)


@dataclass(frozen=True)
class FakeDrawing:
    """An image of `size` (width, height); `settings` is all that it depends on."""

    settings: str
    seed: int
    scheduler: str
    size: tuple[int, int]
    stages: tuple[Stage, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    failed: JaxlError | None = None

    @property
    def ready(self) -> bool:
        return True

    def prepare(self, tell: Callable[[], None]) -> None:
        pass


class Reached:
    """A point that the devices have reached."""

    def is_ready(self) -> bool:
        return True

    def block_until_ready(self) -> None:
        pass


class FakeBatch:
    """A batch whose places each hold a digest of all that was done to them."""

    def __init__(self, backend: FakeBackend, lane: Hashable, size: int):
        self.backend = backend
        self.lane = lane
        self.states: list[bytes] = [b""] * size
        self.joined: list[FakeDrawing | None] = [None] * size

    def join(self, place: int, drawing: FakeDrawing, stage: int, state: bytes | None) -> None:
        if drawing.stages[stage].lane != self.lane:
            raise AssertionError("an image came to a lane that is not its own")
        start = f"{drawing.settings} {drawing.seed}".encode() if state is None else state
        self.states[place] = hashlib.sha256(start + str(stage).encode()).digest()
        self.joined[place] = drawing

    def take(self, place: int) -> bytes:
        self.joined[place] = None
        return self.states[place]

    def move(self, place: int, other: FakeBatch, to: int) -> None:
        other.states[to], other.joined[to] = self.states[place], self.joined[place]
        self.joined[place] = None

    def advance(self, rows: int) -> None:
        time.sleep(rows * self.backend.row_seconds)
        for _ in range(rows):
            self.states = [hashlib.sha256(state).digest() for state in self.states]

    def mark(self) -> Mark:
        return Reached()

    def previews(self) -> Callable[[], np.ndarray]:
        pictures = np.stack([_pattern(state, 8, 8) for state in self.states])
        return lambda: pictures


class FakeBackend:
    """Draws at `size` (width, height), or at any of `sizes_of_images`; a row of a batch takes `row_seconds`.

    Second passes go to `larger` sizes.
    `known` are the LoRAs that it takes, in the argument `loras`; it reads no tags in prompts.
    Guided and unguided images are in lanes of their own. An interval of guidance makes an image go from one to the
    other, as the pipeline's do.
    """

    def __init__(
        self,
        row_seconds: float = 0.0,
        size: tuple[int, int] = (32, 32),
        places: int | Sequence[int] = 4,
        sizes_of_images: Sequence[tuple[int, int]] = (),
        known: Sequence[Lora] = (),
        larger: Sequence[tuple[int, int]] = (),
    ):
        self.row_seconds = row_seconds
        self.size = size
        self.chips = "fake", 1
        self.sizes = [places] if isinstance(places, int) else list(places)
        self.sizes_of_images = [size, *sizes_of_images]
        self.known = known
        self.served: Sequence[Served] = ()
        self.larger = larger

    def models(self) -> Sequence[Served]:
        return self.served

    def attend(self, waiting: Sequence[Any], running: Sequence[Any], tell: Callable[[], None]) -> None:
        pass

    def loras(self) -> Sequence[Lora]:
        return self.known

    def warm_loras(self) -> Sequence[str]:
        return [lora.name for lora in self.known]

    def read(self, arguments: Mapping[str, Any]) -> list[FakeDrawing]:
        given = {name: value for name, value in arguments.items() if value is not None}
        prompt = given.get("prompt")
        if not isinstance(prompt, str):
            raise InputError("prompt", prompt, "give a string")
        steps = _whole(given, "steps", 10, 1, MOST_STEPS)
        images = _whole(given, "num_images", 1, 1, 100)
        seed = _whole(given, "seed", 0, 0, 2**64 - images)
        width, height = (_whole(given, name, self.size[i], 1, 2**16) for i, name in enumerate(("width", "height")))
        if (width, height) not in self.sizes_of_images:
            shown = ", ".join(f"{w}x{h}" for w, h in self.sizes_of_images)
            name = "width" if width not in {w for w, _ in self.sizes_of_images} else "height"
            raise InputError(name, given.get(name), f"this server draws {shown}")
        strength = given.get("strength", 1.0)
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise InputError("strength", strength, "give a number from 0 to 1")
        rows = max(int(steps * strength), 1)
        guided = float(given.get("guidance_scale", 5.0)) > 1
        start, end = given.get("guidance_interval", (0.0, 1.0))
        marks = sorted({0, round(start * rows), round(end * rows), rows}) if guided else [0, rows]
        stages = tuple(
            Stage((width, height, guided and start * rows <= first < end * rows), last - first)
            for first, last in pairwise(marks)
        )
        size = (width, height)
        if (hires := given.get("hires")) is not None:
            _, size = hires.sizes(size, 1)
            if size not in self.larger:
                raise InputError("hires", size, "this server has no second passes of that size")
            stages = (*stages, Stage((*size, guided), hires.steps or steps, remade=True))
        settings = repr(
            sorted((name, _digest(value)) for name, value in given.items() if name not in ("seed", "num_images"))
        )
        scheduler = str(given.get("scheduler", "euler"))
        hashes = {name: self._hash(name) for name in given.get("loras", {})}
        facts = {"lora_hashes": hashes} if hashes else {}
        return [FakeDrawing(settings, seed + i, scheduler, size, stages, facts) for i in range(images)]

    def check(self, arguments: Mapping[str, Any]) -> None:
        self.read(arguments)

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Make pixels larger."""
        if name not in UPSCALERS:
            raise InputError("upscaler", name, nearest(name, UPSCALERS))
        return picture.resize(size, Image.Resampling.NEAREST)

    def _hash(self, name: str) -> str:
        if all(name != lora.name for lora in self.known):
            raise InputError("loras", name, nearest(name, [lora.name for lora in self.known]))
        return _digest(name)[:12]

    def keeps(self, lane: Hashable) -> bool:
        return True

    def batch(self, lane: Hashable, size: int) -> FakeBatch:
        return FakeBatch(self, lane, size)

    def remake(self, drawing: FakeDrawing, stage: int, state: bytes) -> Callable[[], bytes]:
        return lambda: hashlib.sha256(state + repr(drawing.size).encode()).digest()

    def finish(self, drawing: FakeDrawing, state: bytes, early: int | None = None) -> Callable[[], Image.Image]:
        return lambda: Image.fromarray(_pattern(state, *drawing.size))


def _whole(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(name, value, f"give a whole number from {least} to {most}")
    return value


def _digest(value: Any) -> str:
    """Return a digest of a setting; for a picture, of its pixels."""
    data = value.tobytes() if isinstance(value, Image.Image) else repr(value).encode()
    return hashlib.sha256(data).hexdigest()


def _pattern(state: bytes, width: int, height: int) -> np.ndarray:
    """Return a picture of blocks, uint8 [height, width, 3], that only this state makes."""
    blocks = np.frombuffer((state * 6)[:192], np.uint8).reshape(8, 8, 3)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return blocks[rows][:, columns]
