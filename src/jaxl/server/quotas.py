"""What the limits of keys leave to their requests."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxl.errors import InputError
from jaxl.server.errors import ApiError, limited
from jaxl.server.keys import Key
from jaxl.server.sizes import as_text

MINUTE = 60.0
# seconds until a place of a key may be free again; nobody knows how long its images take
AT_ONCE_RETRY = 2.0


@dataclass
class Use:
    """What a key uses: the images that it has `at_once`, and when the `recent` ones began, the oldest first."""

    at_once: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def of_minute(self, now: float) -> int:
        """Return the number of images of the last minute."""
        while self.recent and self.recent[0][0] <= now - MINUTE:
            self.recent.popleft()
        return sum(images for _, images in self.recent)


class Quotas:
    """The use of all keys, by their owners. One thread may use it.

    refused: is told the key and the limit of each request that has to wait.
    """

    def __init__(self, refused: Callable[[Key, str], None], clock: Callable[[], float] = time.monotonic):
        self._refused = refused
        self._clock = clock
        self._uses: dict[str, Use] = {}

    def check(self, key: Key, model: str, arguments: Mapping[str, Any]) -> None:
        """Raise ApiError or InputError for a request that a key may never have, whenever it comes."""
        for param, name in (("model", model), ("refiner", arguments.get("refiner", model))):
            if key.models and name not in key.models:
                raise not_allowed(key, param, name, key.models)
        size = arguments["width"], arguments["height"]
        if key.sizes and size not in key.sizes:
            raise not_allowed(key, "size", as_text(size), map(as_text, key.sizes))
        self.check_number(key, arguments["num_images"], "num_images")

    def check_number(self, key: Key, images: int, param: str) -> None:
        """Raise InputError, naming `param`, for more images than a key may ever have together."""
        for limit in ("images_per_minute", "at_once"):
            most = getattr(key, limit)
            if most is not None and images > most:
                raise InputError(param, images, f"the key {key.name!r} has {limit}={most}; give at most {most}")

    @contextmanager
    def counted(self, key: Key, images: int) -> Iterator[None]:
        """Count images that begin now until they have their end. Raises what `take` does."""
        self.take(key, images)
        try:
            yield
        finally:
            self.give_back(key, images)

    def take(self, key: Key, images: int) -> None:
        """Count images that are to begin. Raises ApiError, of status 429, if that is too many now."""
        use, now = self._uses.setdefault(key.owner, Use()), self._clock()
        most = key.at_once
        if most is not None and use.at_once + images > most:
            said = f"{use.at_once} images of the key {key.name!r} wait or are in the making, and it has at_once={most}"
            self._refused(key, "at_once")
            raise limited(f"{said}; try again when some are done", AT_ONCE_RETRY)
        most, recent = key.images_per_minute, use.of_minute(now)
        if most is not None and recent + images > most:
            left, wait = recent + images - most, 0.0
            for began, older in use.recent:  # until enough of them are a minute ago
                wait = began + MINUTE - now
                left -= older
                if left <= 0:
                    break
            said = f"the key {key.name!r} has had {recent} images in the last minute, and has images_per_minute={most}"
            self._refused(key, "images_per_minute")
            raise limited(f"{said}; try again in {math.ceil(wait)} s", wait)
        use.at_once += images
        use.recent.append((now, images))

    def give_back(self, key: Key, images: int, *, begun: bool = True) -> None:
        """Count images no more that have their end, or that were not taken by the engine and have not `begun`."""
        use = self._uses[key.owner]
        use.at_once -= images
        if not begun:
            newest = [at for at, (_, each) in enumerate(use.recent) if each == images][-1:]
            for at in newest:  # none if it was a minute ago
                del use.recent[at]


def not_allowed(key: Key, param: str, value: str, allowed: Any) -> ApiError:
    """Return the error of a request for what a key may not have; `allowed` are the values that it may."""
    message = str(InputError(param, value, f"the key {key.name!r} may have {', '.join(allowed)}"))
    return ApiError(403, message, param=param, code="not_allowed")
