"""A caller's requests to the engine, their tickets and results, and the events in between."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from jaxl.errors import CancelledError, JaxlError


def new_id() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Request:
    """A request for images; `arguments` are those of `Pipeline.generate`, by name.

    priority: higher ones go first; each step of it is worth ten seconds of waiting, so that nobody waits for ever.
    deadline: seconds from now after which nobody wants the images any more; None is never.
    previews: how many times each image is shown while it is made, evenly spaced; at most once for each call.
    """

    arguments: Mapping[str, Any]
    id: str = field(default_factory=new_id)
    priority: int = 0
    deadline: float | None = None
    previews: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """The images of a request, in order, and how they were made.

    `numbers` are their indices in the request: all of them, unless it was stopped. `steps` are calls of the network for
    each image. `timings`: seconds "queue" (until the first image began), "run" (from there until the last was done) and
    "total".
    """

    images: list[Image.Image]
    seeds: list[int]
    scheduler: str
    steps: int
    timings: dict[str, float]
    numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Started:
    """An image, by its index in the request, has left the queue."""

    image: int


@dataclass(frozen=True)
class Progress:
    """An image has `done` of its `total` rows behind it."""

    image: int
    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Preview:
    """An image while it is made: uint8 [h, w, 3], smaller than the picture."""

    image: int
    done: int
    total: int
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class Drawn:
    """An image is done."""

    image: int
    picture: Image.Image


Event = Started | Progress | Preview | Drawn
State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Status:
    """The state of a request, and how far it is.

    `position` counts the images of others that wait ahead, and `starts_in` is the estimate of seconds until the first
    image begins, 0 once it has. `done` and `total` count the rows of all images; `images` are those that are finished.
    """

    state: State
    position: int
    starts_in: float
    done: int
    total: int
    images: int


class Ticket:
    """A request in the engine. `future` gives the Result, or the error: see `Engine.submit`.

    `seeds` and `scheduler`, by its full name, are those of its images; `done` of the `total` rows of all are run.
    `facts` are those of its drawings. `seconds` are those of the devices: its images' parts of the batches' calls.
    The engine tells the ticket what happens; it holds its own lock where it gives the ticket its end.
    """

    def __init__(
        self,
        request: Request,
        seeds: list[int],
        scheduler: str,
        total: int,
        tell: Callable[[Event], None] | None,
        cancel: Callable[[Ticket], None],
        facts: Mapping[str, Any] | None = None,
        stop: Callable[[Ticket], None] | None = None,
    ):
        """`tell` is called with each event; `cancel` and `stop` ask the engine to cancel or to stop the ticket."""
        self.request = request
        self.seeds = seeds
        self.scheduler = scheduler
        self.facts = facts or {}
        self.tell = tell or (lambda _: None)
        self.submitted = time.monotonic()
        self.images: list[Image.Image | None] = [None] * len(seeds)
        self.total = total
        self.done = 0
        self.seconds = 0.0
        self.started: float | None = None
        self.future: Future[Result] = Future()
        self.left = set(range(len(seeds)))  # the images that are still to come
        self.stopped = False
        self._cancel, self._stop = cancel, stop or cancel

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def expires(self) -> float:
        """The time of its deadline on the monotonic clock; infinite without one."""
        deadline = self.request.deadline
        return float("inf") if deadline is None else self.submitted + deadline

    def cancel(self) -> None:
        """Cancel the request: its places are free before the engine's next call, and `future` raises CancelledError."""
        self._cancel(self)

    def stop(self) -> None:
        """Have the images that have begun finished as they are, and no others; `future` gives those that there are.

        It raises CancelledError if there are none.
        """
        self._stop(self)

    @property
    def state(self) -> State:
        if not self.future.done():
            return "queued" if self.started is None else "running"
        error = self.future.exception()
        return "done" if error is None else "cancelled" if isinstance(error, CancelledError) else "failed"

    def status(self, position: int, starts_in: float) -> Status:
        """Return its status; the engine gives the position, as it knows the queue."""
        images = sum(image is not None for image in self.images)
        return Status(self.state, position, starts_in, self.done, self.total, images)

    def start(self) -> None:
        """Note that an image has left the queue."""
        self.started = self.started or time.monotonic()

    def result(self) -> Result:
        """Return the result, now that all images are done that are to come."""
        drawn = [(number, image) for number, image in enumerate(self.images) if image is not None]
        numbers, images = [number for number, _ in drawn], [image for _, image in drawn]
        now, started = time.monotonic(), self.started or self.submitted
        timings = {"queue": started - self.submitted, "run": now - started, "total": now - self.submitted}
        seeds, steps = [self.seeds[number] for number in numbers], self.total // len(self.images)
        return Result(images, seeds, self.scheduler, steps, timings, numbers)

    def settle(self, outcome: Result | JaxlError) -> bool:
        """Give it its end, unless it has one; return whether it had none."""
        if self.future.done():
            return False
        if isinstance(outcome, Result):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)
        return True
