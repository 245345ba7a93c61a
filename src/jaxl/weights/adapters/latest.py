"""Values that are made when they are asked for, of which the latest are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """The latest values that were made, as long as their sizes stay within `most`; the last one stays in any case.

    Threads may share it; a value is made once, while those who want others wait.
    """

    def __init__(self, most: int, size: Callable[[T], int] = lambda _: 1):
        self._most = most
        self._size = size
        self._values: dict[Hashable, T] = {}
        self._lock = threading.Lock()

    def values(self) -> list[T]:
        """Return the values that are kept, without a wait for the one that is being made."""
        return list(self._values.values())

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            value = self._values.pop(key) if key in self._values else make()
            self._values[key] = value
            while len(self._values) > 1 and sum(map(self._size, self._values.values())) > self._most:
                del self._values[next(iter(self._values))]
            return value
