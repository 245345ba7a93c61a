"""The running batch of one lane: which image is at which place, and how far it was asked to go."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxl.engine.backend import Backend, Batch, Mark
from jaxl.engine.forecast import Average
from jaxl.engine.request import Ticket
from jaxl.engine.turns import Claim

# seconds of waiting that one step of priority is worth
PRIORITY_SECONDS = 10.0


class Work:
    """One image of a request on its way: `stage` of its drawing, of which the devices were asked to run `done` rows.

    `state` is what `Batch.take` or `Backend.remake` returned, while the image is at no place; None before its first,
    and while it is `remade`. `ended` is what that is made of, until the image is at a place again.
    """

    def __init__(self, ticket: Ticket, index: int, drawing: Any, backend: Backend):
        self.ticket = ticket
        self.index = index
        self.drawing = drawing
        self.backend = backend
        self.stage = 0
        self.done = 0
        self.before = 0  # rows of earlier stages
        self.shown = 0
        self.state: Any = None
        self.ended: Any = None
        self.remade = False

    @property
    def ready(self) -> bool:
        """Whether it may join a batch."""
        return not self.remade and self.drawing.ready

    @property
    def lane(self) -> Hashable:
        return self.drawing.stages[self.stage].lane

    @property
    def total(self) -> int:
        return sum(stage.rows for stage in self.drawing.stages)

    @property
    def rows_done(self) -> int:
        return self.before + self.done

    @property
    def rows_left(self) -> int:
        return self.total - self.rows_done

    @property
    def order(self) -> tuple[bool, float, int]:
        """The key of the queue: images that have begun go first, then the longest wait, with the priority added."""
        return (self.stage == 0, self.since, self.index)

    @property
    def since(self) -> float:
        """The time from which it has waited, on the monotonic clock, with the priority added."""
        return self.ticket.submitted - PRIORITY_SECONDS * self.ticket.request.priority

    def claim(self, now: float, row_seconds: float) -> Claim:
        """Return its claim on the devices, if rows take so long."""
        return Claim(max(now - self.since, 0.0), self.total * row_seconds, self.rows_left * row_seconds)

    @property
    def rows_to_stop(self) -> int:
        """The number of rows until its stage ends or it is to be shown."""
        left, previews, total = (
            self.drawing.stages[self.stage].rows - self.done,
            self.ticket.request.previews,
            self.total,
        )
        if self.shown >= previews:
            return left
        point = math.ceil((self.shown + 1) * total / (previews + 1))
        return min(left, max(point - self.before - self.done, 1))

    @property
    def at_end(self) -> bool:
        return self.done == self.drawing.stages[self.stage].rows

    def advance(self, rows: int) -> bool:
        """Count rows that are run, and return whether it is to be shown now."""
        self.done += rows
        previews, done = self.ticket.request.previews, self.rows_done
        points = min(done * (previews + 1) // self.total, previews) if done < self.total else self.shown
        due, self.shown = points > self.shown, points
        return due

    def next_stage(self, state: Any) -> bool:
        """Go on to the next stage; return False after the last one."""
        self.state = state
        self.before += self.done
        self.done = 0
        self.stage += 1
        return self.stage < len(self.drawing.stages)

    def remake(self) -> Callable[[], Any] | None:
        """Begin to make the state that its stage begins with, where that is not the last one's."""
        if not self.drawing.stages[self.stage].remade:
            return None
        self.remade = True
        self.ended, self.state = self.state, None
        return self.backend.remake(self.drawing, self.stage, self.ended)

    def finish(self, *, early: bool = False) -> Callable[[], Image.Image]:
        """Begin to make the picture of its last state, or before that of the one that it has, and give that up."""
        if early and self.ended is not None:
            picture = self.backend.finish(self.drawing, self.ended, self.stage - 1)
        else:
            picture = self.backend.finish(self.drawing, self.state, self.stage if early else None)
        self.ended = None
        self.state = None
        return picture


@dataclass(frozen=True, eq=False)
class Call:
    """Rows of a lane that the devices were asked to run, and what there is to tell when they have come to the `mark`.

    progress: the images that were at places, each with its place and all its rows by then. shown: the places of those
    to be shown, of which `previews` waits for the pictures. onward: the images that have another stage. remade: those
    of them whose state is made anew, each with a callable that makes it. drawn: the images that have no other stage,
    each with a callable that waits for its picture.
    """

    lane: Lane
    rows: int
    began: float
    mark: Mark
    progress: list[tuple[int, Work, int]]
    shown: list[int]
    previews: Callable[[], np.ndarray] | None
    onward: list[Work]
    remade: list[tuple[Work, Callable[[], Any]]]
    drawn: list[tuple[Work, Callable[[], Image.Image]]]


class Lane:
    """A batch with its works by place."""

    def __init__(self, backend: Backend, key: Hashable):
        self.backend = backend
        self.key = key
        self.places: list[Work | None] = []
        self.row_seconds = Average()
        self._batch: Batch | None = None

    @property
    def most(self) -> int:
        return self.backend.sizes[-1]

    @property
    def batch(self) -> Batch:
        assert self._batch is not None  # `fit` opens it
        return self._batch

    def running(self) -> Iterator[tuple[int, Work]]:
        return ((place, work) for place, work in enumerate(self.places) if work is not None)

    @property
    def count(self) -> int:
        return sum(1 for _ in self.running())

    def fit(self, images: int) -> None:
        """Open the smallest batch that holds that many images, and move the running ones into it."""
        size = next((size for size in self.backend.sizes if size >= images), self.most)
        if size == len(self.places):
            return
        batch, works = self.backend.batch(self.key, size), list(self.running())
        for to, (place, _) in enumerate(works):
            self.batch.move(place, batch, to)
        self._batch = batch
        self.places = [work for _, work in works] + [None] * (size - len(works))

    def join(self, work: Work) -> None:
        place = self.places.index(None)
        self.batch.join(place, work.drawing, work.stage, work.state)
        self.places[place] = work
        work.state = work.ended = None

    def _take(self, place: int) -> Any:
        self.places[place] = None
        return self.batch.take(place)

    def leave(self, place: int) -> Work:
        """Return an image that leaves its place with the state that it has."""
        work = self.places[place]
        assert work is not None
        work.state = self._take(place)
        return work

    def run(self, rows: int, began: float) -> Call:
        """Ask the devices, now, for the next rows of all images; those at the end of a stage leave their places."""
        self.batch.advance(rows)
        running = list(self.running())
        shown = [place for place, work in running if work.advance(rows)]
        previews = self.batch.previews() if shown else None
        progress = [(place, work, work.rows_done) for place, work in running]
        mark = self.batch.mark()
        ended = [(place, work) for place, work in running if work.at_end]
        onward = [work for place, work in ended if work.next_stage(self._take(place))]
        remade = [(work, made) for work in onward if (made := work.remake()) is not None]
        drawn = [(work, work.finish()) for _, work in ended if work not in onward]
        return Call(self, rows, began, mark, progress, shown, previews, onward, remade, drawn)

    def drop(self, unwanted: set[Ticket]) -> None:
        """Free the places of the tickets that are not wanted any more."""
        self.places = [None if work is None or work.ticket in unwanted else work for work in self.places]

    def rows_of_call(self, quantum: float) -> int:
        """Return how many rows to run: until an image stops or is shown, or the call has taken `quantum` seconds."""
        rows = min(work.rows_to_stop for _, work in self.running())
        seconds = self.row_seconds.value
        return max(1, min(rows, int(quantum / seconds))) if seconds else 1
