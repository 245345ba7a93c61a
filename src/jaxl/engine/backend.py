"""The interface through which the engine draws: `jaxl.backend` has it with a pipeline, `jaxl.engine.fake` without."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Stage:
    """A number of rows that an image runs in one lane; images of a lane run together, whatever else they differ in."""

    lane: Hashable
    rows: int


@dataclass(frozen=True)
class Lora:
    """A LoRA that requests may ask for by its name: its file, without a folder, and what that says of itself."""

    name: str
    file: str
    base_model: str | None = None
    trigger_words: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


class Drawing(Protocol):
    """One image of a request, checked, and the stages that draw it."""

    @property
    def stages(self) -> Sequence[Stage]: ...
    @property
    def ready(self) -> bool:
        """Whether it may join a batch: that of which others would have to wait is done."""
        ...

    def prepare(self, tell: Callable[[], None]) -> None:
        """Begin to make it ready, in another thread, which calls `tell` then; more calls change nothing."""
        ...

    @property
    def seed(self) -> int: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts for its file that the request may not have said: `steps`, `guidance_scale`, and `lora_hashes`."""
        ...


class Mark(Protocol):
    """A point in what the devices were asked to do; a `jax.Array` that is made there is one."""

    def is_ready(self) -> bool:
        """Return whether the devices have come so far."""
        ...

    def block_until_ready(self) -> Any:
        """Wait until they have. Raises whatever went wrong before."""
        ...


class Batch(Protocol):
    """The images that one lane runs. One thread uses it; what it is asked may be done after the method returns."""

    def join(self, place: int, drawing: Any, stage: int, state: Any | None) -> None:
        """Put an image at a free place, at the beginning of a stage; `state` comes from `take`, None in the first."""
        ...

    def take(self, place: int) -> Any:
        """Free a place, and return the state of the image that was there."""
        ...

    def advance(self, rows: int) -> None:
        """Run the next rows of every image."""
        ...

    def mark(self) -> Mark:
        """Return the point after all that was asked."""
        ...

    def previews(self) -> Callable[[], np.ndarray]:
        """Begin to make small pictures of what the images are going to be.

        The callable waits for them, uint8 [places, h, w, 3]; the batch may have gone on by then.
        """
        ...

    def move(self, place: int, other: Any, to: int) -> None:
        """Move the image at a place to the free place `to` of another batch of the same lane."""
        ...


class Backend(Protocol):
    """A model that is loaded, with its lanes."""

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of places that a batch may have, ascending."""
        ...

    def read(self, arguments: Mapping[str, Any]) -> Sequence[Any]:
        """Return the drawings for arguments of `Pipeline.generate`; any thread may call it. Raises InputError."""
        ...

    def loras(self) -> Sequence[Lora]:
        """Return the LoRAs that there are now; any thread may call it."""
        ...

    def warm_loras(self) -> Sequence[str]:
        """Return the names of the LoRAs that it need not read first; any thread may call it, and does not wait."""
        ...

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return a picture in mode RGB in another size, by an upscaler; any thread may call it. Raises InputError."""
        ...

    def keeps(self, lane: Any) -> bool:
        """Return whether the batch of a lane stays open while it has no images."""
        ...

    def batch(self, lane: Any, size: int) -> Batch:
        """Return a batch of `size` free places."""
        ...

    def finish(self, drawing: Any, state: Any, early: bool = False) -> Callable[[], Image.Image]:
        """Begin to turn the last state into a picture, and return a callable that waits for it in another thread.

        With `early` the state is another one, and the picture what the image was going to be, as far as that shows.
        The callable raises NonFiniteError.
        """
        ...
