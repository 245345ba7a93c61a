"""Forecasts of when waiting images begin."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence


def starts(remaining: Sequence[int], places: int, waiting: Sequence[int]) -> list[int]:
    """Return after how many rows each waiting image begins, in their order; all places run one row at a time.

    `remaining` are the rows left to each running image, `waiting` all rows of each waiting one.
    """
    free = [0] * max(places - len(remaining), 0) + list(remaining)
    heapq.heapify(free)
    begun = []
    for rows in waiting:
        begun.append(heapq.heappop(free) if free else 0)
        heapq.heappush(free, begun[-1] + rows)
    return begun


class Window:
    """Counts something; `rate` is the number per second over the last `seconds`."""

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
    """A moving average: each new value has the weight `share`. It is None before the first."""

    def __init__(self, share: float = 0.2):
        self.share = share
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self.share * (value - self.value)
