"""Things kept in memory for a while: pictures that answers point to, and requests that asked to be kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxl.engine import Status, Ticket

T = TypeVar("T")

SECONDS = 3600.0
MOST_BYTES = 256 * 2**20
MOST_REQUESTS = 10_000


@dataclass(frozen=True)
class File:
    """A picture's file."""

    data: bytes
    media_type: str


@dataclass(eq=False)
class KeptRequest:
    """A request that answers after its end too, to its `owner`.

    `seeds` are those of its images; `names`, by image, those of the files so far. Once all files are kept, `ticket` is
    None, and `status` is its last one; `error` is the error object, if there was one.
    """

    owner: str
    ticket: Ticket | None
    names: Mapping[int, str]
    seeds: Sequence[int]
    status: Status | None = None
    error: Mapping[str, Any] | None = None

    def end(self, status: Status, error: Mapping[str, Any] | None) -> None:
        self.ticket, self.status, self.error = None, status, error  # a ticket holds pixels


class Shelf(Generic[T]):
    """Keeps values by name, each for `seconds`; the oldest go earlier if all together are larger than `most`.

    One thread may use it.
    """

    def __init__(self, most: int, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic):
        self.most = most
        self.seconds = seconds
        self.size = 0
        self._clock = clock
        self._kept: dict[str, tuple[float, int, T]] = {}  # the oldest first

    def put(self, name: str, value: T, size: int = 1) -> None:
        """Keep a value from now on, instead of an earlier one of this name."""
        self.take(name)
        self._kept[name] = self._clock(), size, value
        self.size += size
        self._shed()

    def get(self, name: str) -> T | None:
        self._shed()
        return self._kept[name][2] if name in self._kept else None

    def take(self, name: str) -> T | None:
        """Return the value as `get` does, and keep it no longer."""
        value = self.get(name)
        if value is not None:
            self.size -= self._kept.pop(name)[1]
        return value

    def _shed(self) -> None:
        while self._kept:
            name, (since, size, _) = next(iter(self._kept.items()))
            if self.size <= self.most and self._clock() < since + self.seconds:
                return
            del self._kept[name]
            self.size -= size


def new_name(suffix: str) -> str:
    """Return a file's name with 192 random bits: whoever knows it may have the file."""
    return f"{secrets.token_urlsafe(24)}.{suffix}"
