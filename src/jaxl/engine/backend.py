"""The interface through which the engine draws: `jaxl.backend` has it with a pipeline, `jaxl.engine.fake` without."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from jaxl.errors import JaxlError

# where the parameters of a model are
Place = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class Stage:
    """A number of rows that an image runs in one lane; images of a lane run together, whatever else they differ in.

    remade: what it begins with is made, by `Backend.remake`, of what the stage before left.
    """

    lane: Hashable
    rows: int
    remade: bool = False


@dataclass(frozen=True)
class Lora:
    """A LoRA that requests may ask for by its name: its file, without a folder, and what that says of itself."""

    name: str
    file: str
    base_model: str | None = None
    trigger_words: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """A model that requests may ask for by its name, and where its parameters are.

    file: its file's or folder's name. sha256: of its file, once known. parts: the bytes of its networks, by what is in
    them. swaps: how often it came onto the devices, from host memory and from disk, and how many seconds that took.
    """

    name: str
    file: str
    sha256: str | None = None
    place: Place = "disk"
    parts: Mapping[str, int] = field(default_factory=dict)
    swaps: Mapping[str, int] = field(default_factory=dict)
    swap_seconds: float = 0.0

    @property
    def hash(self) -> str | None:
        """The hash by which AUTOMATIC1111's web UI names the file."""
        return None if self.sha256 is None else self.sha256[:10]

    @property
    def title(self) -> str:
        """The name that AUTOMATIC1111's web UI shows."""
        return self.file if self.hash is None else f"{self.file} [{self.hash}]"

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever clients may call it."""
        hashes = () if self.sha256 is None else (self.sha256[:10], self.sha256)
        return tuple(dict.fromkeys((self.name, self.file, self.title, *hashes)))


class Drawing(Protocol):
    """One image of a request, checked, and the stages that draw it."""

    @property
    def stages(self) -> Sequence[Stage]: ...
    @property
    def ready(self) -> bool:
        """Whether it may join a batch: that of which others would have to wait is done."""
        ...

    @property
    def failed(self) -> JaxlError | None:
        """Why it never will be ready, if it will not."""
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
        """Put an image at a free place, at the beginning of a stage.

        `state` comes from `take`, or from `Backend.remake` where the stage is remade; it is None in the first one.
        """
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
    """A model that is loaded, or several, with their lanes."""

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of places that a batch may have, ascending."""
        ...

    def models(self) -> Sequence[Served]:
        """Return the models to choose from, the usual one first; none where there is one. Any thread may call it."""
        ...

    def attend(self, waiting: Sequence[Any], running: Sequence[Any], tell: Callable[[], None]) -> None:
        """Learn which drawings wait, in their order, and which are in the making; the engine's thread calls it often.

        So it can have there what they need: a drawing whose model is not is not ready. It calls `tell`, in any thread,
        when that has changed.
        """
        ...

    def read(self, arguments: Mapping[str, Any]) -> Sequence[Any]:
        """Return the drawings for arguments of `Pipeline.generate`; any thread may call it. Raises InputError."""
        ...

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise InputError for arguments that `read` would not take, as far as that can be told without work."""
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

    def remake(self, drawing: Any, stage: int, state: Any) -> Callable[[], Any]:
        """Begin to make what a remade stage begins with, of the state that the one before ended with.

        The callable does the rest, in another thread. It raises NonFiniteError.
        """
        ...

    def finish(self, drawing: Any, state: Any, early: int | None = None) -> Callable[[], Image.Image]:
        """Begin to turn the last state into a picture, and return a callable that waits for it in another thread.

        With `early` the state is one of that stage, and the picture what it was going to be, as far as that shows.
        The callable raises NonFiniteError.
        """
        ...
