"""What the engine asks of whoever draws: `jaxl.backend` does it with a pipeline, `jaxl.engine.fake` without one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Stage:
    """So many rows of an image, in a lane: images in one lane run together, whatever else they differ in."""

    lane: Hashable
    rows: int


class Drawing(Protocol):
    """One image of a request, checked: what is to be done for it."""

    @property
    def stages(self) -> Sequence[Stage]: ...
    @property
    def seed(self) -> int: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...


class Batch(Protocol):
    """The images of one lane in the making. Of one thread; `advance` and `join` may return before they are done."""

    def join(self, place: int, drawing: Any, stage: int, state: Any | None) -> None:
        """Put an image at a free place, at the beginning of a stage; `state` is what `take` gave, None before."""
        ...

    def take(self, place: int) -> Any:
        """The state of the image at a place, which is free then."""
        ...

    def advance(self, rows: int) -> None:
        """Run the next rows of every image."""
        ...

    def wait(self) -> None:
        """Until all that was asked is done."""
        ...

    def previews(self) -> np.ndarray:
        """Small pictures, uint8 [places, h, w, 3], of what the images are going to be."""
        ...

    def move(self, place: int, other: Any, to: int) -> None:
        """Take the image at a place over to a free one of another batch of the same lane."""
        ...


class Backend(Protocol):
    """A model that is loaded, with its lanes."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many places a batch may have, ascending."""
        ...

    def read(self, arguments: Mapping[str, Any]) -> Sequence[Any]:
        """The drawings of a request, from the arguments of `Pipeline.generate`; by any thread. Raises InputError."""
        ...

    def batch(self, lane: Any, size: int) -> Batch:
        """A batch of so many free places."""
        ...

    def finish(self, drawing: Any, state: Any) -> Callable[[], Image.Image]:
        """Begin to turn the last state into a picture. The callable, for another thread, waits for it.

        It raises NonFiniteError.
        """
        ...
