"""The noise that rows add as other programs draw it: by threads on the host, ahead of the rows that need it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxl.diffusion.loop import GivenNoise
from jaxl.run.bucket import GIVEN_ROWS, Bucket
from jaxl.run.programs import Programs

AHEAD = 32  # draws of an image that are kept at most, 8 MiB at 1024x1024
# threads for all images; with more, whoever runs the devices would have to wait for a processor
_DRAWERS = ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 4)), thread_name_prefix="draw noise")


@dataclass(frozen=True, eq=False)
class RowNoise:
    """The noise that an image adds: `draws` begins it anew, and `rows` bool [rows] says which rows take the next."""

    draws: Callable[[], Iterator[np.ndarray]]
    rows: np.ndarray


class DrawnAhead:
    """The noise of an image, row by row. A thread draws it: AHEAD arrays, and others when these are taken."""

    def __init__(self, noise: RowNoise):
        self._draws = noise.draws()
        self._takes = noise.rows
        self._row = 0
        self._left = int(noise.rows.sum())  # arrays that are not drawn yet
        self._drawn: deque[np.ndarray] = deque()
        self._drawing = False
        self._failed: Exception | None = None
        self._tell: Callable[[], None] | None = None
        self._changed = threading.Condition()

    @property
    def ready(self) -> bool:
        """Whether as much is drawn as is kept; or drawing failed, which `take` raises."""
        return self._failed is not None or not self._left or len(self._drawn) >= AHEAD

    def begin(self, tell: Callable[[], None] | None = None) -> None:
        """Begin to draw, unless that was done; the thread that draws calls `tell` when it is ready."""
        with self._changed:
            self._tell = tell or self._tell
            if not self._drawing and not self.ready:
                self._drawing = True
                _DRAWERS.submit(self._draw)

    def wait(self) -> None:
        """Wait until it is ready."""
        self.begin()
        with self._changed:
            self._changed.wait_for(lambda: self.ready)

    def take(self, into: np.ndarray) -> None:
        """Write the noise of the next rows into an array [rows, H, W, C], where they add any; wait if need be."""
        takes = np.flatnonzero(self._takes[self._row : self._row + len(into)])
        self._row += len(into)
        for place in takes:
            self.begin()
            with self._changed:
                self._changed.wait_for(lambda: self._drawn or self._failed is not None)
                if self._failed is not None:
                    raise self._failed
                into[place] = self._drawn.popleft()
        self.begin()

    def _draw(self) -> None:
        done = False
        while not done:
            try:
                drawn, failed = [next(self._draws)], None
            except Exception as error:  # whoever waits for it hears of it
                drawn, failed = [], error
            with self._changed:
                self._drawn.extend(drawn)
                self._left -= len(drawn)
                self._failed = failed
                done = self.ready
                self._drawing = not done
                tell = self._tell
                self._changed.notify_all()
        if tell is not None:
            tell()


def calls(
    programs: Programs, bucket: Bucket, drawn: Mapping[int, DrawnAhead], rows: int, most: int | None = None
) -> Iterator[tuple[np.int32, GivenNoise]]:
    """Yield the calls of ADVANCE that run so many rows: how many each runs, and the noise that it is given.

    `drawn` is the noise of the images that do not draw their own, by their places in the bucket. A call runs `most`
    rows.
    """
    most = min(most or rows, GIVEN_ROWS if drawn else rows)
    has = np.isin(np.arange(bucket.batch), [*drawn])
    batch, *latents = bucket.latents_shape(programs.target.model)
    for done in range(0, rows, most):
        n = min(rows - done, most)
        if not drawn:
            yield np.int32(n), programs.none_given(bucket)
            continue
        noise = np.zeros((batch, GIVEN_ROWS, *latents), np.float32)
        for place, own in drawn.items():
            own.take(noise[place, :n])
        yield np.int32(n), GivenNoise(noise, has)
