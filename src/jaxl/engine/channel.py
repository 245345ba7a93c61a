"""The way of events from the engine's threads to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from jaxl.engine.request import Event


class Channel:
    """Passes events of the engine's threads to the iterators that follow them in the event loop."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._queues: list[asyncio.Queue[Event | None]] = []

    def call(self, function: Any, *arguments: Any) -> None:
        """Call a function in the event loop; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, so nobody listens
            self._loop.call_soon_threadsafe(function, *arguments)

    def tell(self, event: Event) -> None:
        """Pass an event on; from any thread."""
        self.call(self._put, event)

    def end(self) -> None:
        self.ended.set()
        self._put(None)

    def follow(self) -> AsyncIterator[Event]:
        """Return an iterator over the events from now on."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues.append(queue)
        if self.ended.is_set():
            queue.put_nowait(None)
        return self._read(queue)

    async def _read(self, queue: asyncio.Queue[Event | None]) -> AsyncIterator[Event]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.remove(queue)

    def _put(self, event: Event | None) -> None:
        for queue in self._queues:
            queue.put_nowait(event)
