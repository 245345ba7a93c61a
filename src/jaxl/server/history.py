"""The last minutes of a server, for plots, worked out from its recent requests, so that nothing has to be sampled."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxl.engine import Ticket

# the number of requests that are remembered
MOST = 1000
# the number of steps in plots, and the seconds of each
STEPS = 60
EVERY = 10.0


class Past(NamedTuple):
    """A request with `images`, of which `done` were drawn. Times are of the monotonic clock, infinite if to come."""

    submitted: float
    started: float
    ended: float
    images: int
    done: int

    @classmethod
    def of(cls, ticket: Ticket, ended: float, *, done: bool) -> Past:
        started = math.inf if ticket.started is None else ticket.started
        images = len(ticket.seeds)
        return cls(ticket.submitted, started, ended, images, images if done else 0)


class History:
    """The requests that ended last."""

    def __init__(self) -> None:
        self._past: deque[Past] = deque(maxlen=MOST)

    def add(self, ticket: Ticket, *, done: bool) -> Past:
        """Remember a request that ended just now; `done` if all its images were drawn."""
        past = Past.of(ticket, time.monotonic(), done=done)
        self._past.append(past)
        return past

    def latencies(self) -> list[float]:
        """Return the seconds that each request took until all its images were done; others are left out."""
        return [past.ended - past.submitted for past in self._past if past.done]

    def steps(self, live: Iterable[Ticket], now: float | None = None) -> dict[str, Any]:
        """Return lists of a value for each step of `every` seconds, the oldest first.

        `images_per_second` and `latency`, the median in seconds or None, are of the requests that were done within the
        step; `waiting` and `running` count the images of requests that waited or ran at its end. Steps that are not
        wholly remembered are left out. `live` are the requests that have not ended; `now` is of the monotonic clock.
        """
        now = time.monotonic() if now is None else now
        known = [*self._past, *(Past.of(ticket, math.inf, done=False) for ticket in live)]
        submitted, started, ended, images, done = np.array(known, float).reshape(-1, len(Past._fields)).T
        ends = now - EVERY * np.arange(STEPS)[::-1]
        if len(self._past) == MOST:
            ends = ends[ends - EVERY >= self._past[0].ended]
        in_queue = [(submitted <= end) & (np.minimum(started, ended) > end) for end in ends]
        in_making = [(started <= end) & (ended > end) for end in ends]
        finished = [(ended > end - EVERY) & (ended <= end) & (done > 0) for end in ends]
        latencies = [(ended - submitted)[chosen] for chosen in finished]
        return {
            "every": EVERY,
            "images_per_second": [float(done[chosen].sum() / EVERY) for chosen in finished],
            "latency": [float(np.median(each)) if len(each) else None for each in latencies],
            "waiting": [int(images[chosen].sum()) for chosen in in_queue],
            "running": [int(images[chosen].sum()) for chosen in in_making],
        }
