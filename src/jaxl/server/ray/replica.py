"""A replica: one engine with the devices that Ray has given its process, and its messages about images on their way."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from jaxl.engine import Channel, Engine, Event, Request, Status
from jaxl.engine.backend import Lora, Served
from jaxl.engine.engine import STALLED_SECONDS, Stats
from jaxl.engine.request import new_id
from jaxl.errors import EngineError, JaxlError, PromptWarning

# seconds between statuses of images that wait
STATUS_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accepted:
    """Images are in the queue: the full name of their scheduler, the rows of all, and the facts of their drawings."""

    scheduler: str
    rows: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent:
    """The seconds of the devices that images took."""

    seconds: float


Message = Accepted | Status | Event | Spent | JaxlError


@dataclass(frozen=True)
class Description:
    """A replica's `defaults`, `chips` and `models`, as the backend has them.

    Its places: the images that it draws at once.
    """

    defaults: Mapping[str, Any]
    chips: tuple[str, int]
    places: int
    models: Sequence[Served] = ()


class Replica:
    """One engine. Its methods are called through Ray Serve, in one event loop."""

    def __init__(
        self, load: Callable[[], Any], engine_options: Mapping[str, Any], stalled_seconds: float = STALLED_SECONDS
    ):
        """`load` returns the backend; it is called here, where the devices are."""
        warnings.simplefilter("ignore", PromptWarning)  # they may quote the prompt
        self.id = new_id()
        self.stalled_seconds = stalled_seconds
        self.backend = load()
        self.engine = Engine(self.backend, **engine_options)
        self.engine.start()

    def describe(self) -> Description:
        return Description(self.backend.defaults, self.backend.chips, self.backend.sizes[-1], self.engine.models())

    def stats(self) -> tuple[str, Stats, Sequence[Served]]:
        """Return the replica's own id, the engine's stats and its models."""
        return self.id, self.engine.stats(), self.engine.models()

    def loras(self) -> Sequence[Lora]:
        return self.engine.loras()

    async def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image | JaxlError:
        """Return a picture in another size, or why there is none."""
        try:
            return await asyncio.to_thread(self.engine.upscale, name, picture, size)
        except JaxlError as error:
            return error

    def record_routing_stats(self) -> dict[str, Any]:
        """Return what the router needs: the places, what is warm, and the devices' seconds for an image."""
        stats = self.engine.stats()
        return {
            "places": self.backend.sizes[-1],
            "loras": list(self.backend.warm_loras()),
            "models": [each.name for each in self.engine.models() if each.place == "device"],
            "image_seconds": stats.busy_seconds / max(stats.images_done, 1),
        }

    def record_autoscaling_stats(self) -> dict[str, int]:
        """Return what `jaxl.server.ray.scale` needs: the images that wait or are in the making."""
        stats = self.engine.stats()
        return {"images": stats.waiting + stats.running}

    def check_health(self) -> None:
        """Raise EngineError if the devices failed several times in a row: Ray then starts another replica.

        If they are stuck, the process ends at once: Ray would wait for images that never come, but once the process is
        gone, the fleet lets another replica draw them.
        """
        if self.engine.stalled(self.stalled_seconds):
            log.error("a call of the devices takes more than %g s; this replica ends", self.stalled_seconds)
            os._exit(1)
        if not self.engine.healthy:
            raise EngineError("the devices failed several times in a row")

    async def draw(self, request: Request) -> AsyncIterator[Message]:
        """Draw a request of at most as many images as there are places. Leaving early cancels it.

        Yields Accepted, then events, and a Status each second while all of it waits; at the end Spent, and an error if
        there was one.
        """
        channel = Channel()
        events = channel.follow()
        try:
            ticket = await asyncio.to_thread(self.engine.submit, request, channel.tell)
        except JaxlError as error:
            yield error
            return
        ticket.future.add_done_callback(lambda _: channel.call(channel.end))
        try:
            yield Accepted(ticket.scheduler, ticket.total, ticket.facts)
            next_event = asyncio.ensure_future(anext(events, None))
            while True:
                await asyncio.wait([next_event], timeout=STATUS_SECONDS if ticket.started is None else None)
                if not next_event.done():
                    yield self.engine.status(ticket)
                elif (event := next_event.result()) is not None:
                    yield event
                    next_event = asyncio.ensure_future(anext(events, None))
                else:
                    break
            yield Spent(ticket.seconds)
            if isinstance(error := ticket.future.exception(), JaxlError):
                yield error
        finally:
            ticket.cancel()  # does nothing once it has ended
