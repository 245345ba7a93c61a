"""When those who wait are going to begin."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence


def starts(remaining: Sequence[int], places: int, waiting: Sequence[int]) -> list[int]:
    """After how many rows each of the waiting images begins, in their order, at one row for all places at a time.

    `remaining` are the rows that the running ones have before them, `waiting` all those of the others.
    """
    free = [0] * max(places - len(remaining), 0) + list(remaining)
    heapq.heapify(free)
    begun = []
    for rows in waiting:
        begun.append(heapq.heappop(free) if free else 0)
        heapq.heappush(free, begun[-1] + rows)
    return begun


class Window:
    """How many of something there were for each second, of the last `seconds`."""

    def __init__(self, seconds: float = 60.0):
        self.seconds = seconds
        self._opened = time.monotonic()
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        self._counts.append((time.monotonic(), count))

    def rate(self) -> float:
        now = time.monotonic()
        while self._counts and self._counts[0][0] < now - self.seconds:
            self._counts.popleft()
        return sum(count for _, count in self._counts) / min(self.seconds, max(now - self._opened, 1e-9))


class Average:
    """A mean that forgets: what is new has the weight `share`. None before the first."""

    def __init__(self, share: float = 0.2):
        self.share = share
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self.share * (value - self.value)
