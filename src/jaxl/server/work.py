"""The files of an answer, made of the images that were drawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from jaxl.call.seeds import of_image
from jaxl.call.sizes import Size
from jaxl.engine import Drawn, Event
from jaxl.server.edits import Source
from jaxl.server.errors import api_error, error_object
from jaxl.server.filters import blurred, judge, refused
from jaxl.server.kept import File, KeptRequest, new_name
from jaxl.server.pictures import MEDIA_TYPES, Format
from jaxl.server.service import Service, Stream
from jaxl.server.sizes import as_text, fitted


@dataclass(eq=False)
class AnswerFiles:
    """The files of a request's pictures, each made once, however often it is asked for.

    source: laid over pictures where its mask keeps it. format, quality: as `Service.encode` takes them. names: of the
    files that are kept, by image. blurred: the images that the operator's filter has blurred.
    """

    service: Service
    stream: Stream
    source: Source | None = None
    format: Format = "png"
    quality: int | None = None
    names: dict[int, str] = field(default_factory=dict)
    blurred: set[int] = field(default_factory=set)
    _files: dict[int, asyncio.Task[File]] = field(default_factory=dict)

    @property
    def resized(self) -> bool:
        """True if the client gets another size than the one drawn."""
        return self.stream.wanted != self.stream.drawn

    def size(self, drawn: Image.Image) -> Size:
        """Return the size of the picture that the client gets."""
        return self.stream.wanted if self.resized else drawn.size

    def settings(self, image: int, drawn: Image.Image) -> dict[str, Any]:
        """Return the settings of an image, by its index in the request."""
        ticket = self.stream.ticket
        settings = self.service.settings_of(
            self.stream.arguments, drawn, ticket.seeds[image], ticket.scheduler, ticket.facts
        )
        settings |= of_image(self.stream.arguments, ticket.seeds[image], image)
        if self.stream.embeddings:
            settings["embeddings"] = dict(self.stream.embeddings)
        return {**settings, "resized_to": as_text(self.stream.wanted)} if self.resized else settings

    async def file(self, image: int, drawn: Image.Image) -> File:
        if image not in self._files:
            self._files[image] = asyncio.create_task(self._encoded(image, drawn))
        return await asyncio.shield(self._files[image])  # others may wait for it too

    async def name(self, image: int, drawn: Image.Image) -> str:
        """Keep the file, and return its name."""
        file = await self.file(image, drawn)
        if image not in self.names:
            self.names[image] = new_name(self.format)
            self.service.files.put(self.names[image], file, len(file.data))
        return self.names[image]

    def keep(self) -> None:
        """Have the request answer after its end too, with its pictures."""
        kept = KeptRequest(self.stream.key.owner, self.stream.ticket, self.names, self.stream.ticket.seeds)
        self.service.requests.put(self.stream.id, kept)
        self.service.background(self._keep(kept, self.stream.channel.follow()))

    async def _keep(self, kept: KeptRequest, events: AsyncIterator[Event]) -> None:
        ticket, error = self.stream.ticket, None
        try:
            async for news in events:
                if isinstance(news, Drawn):
                    await self.name(news.image, news.picture)
            for image, picture in enumerate(ticket.images):  # some were drawn before anybody followed
                if picture is not None:
                    await self.name(image, picture)
            await self.stream.result()
        except Exception as raised:
            error = error_object(api_error(raised))["error"]
        kept.end(self.service.engine.status(ticket), error)

    async def _encoded(self, image: int, drawn: Image.Image) -> File:
        composite = self.source is not None and self.source.stays
        how: dict[str, Any] = {"format": self.format, "quality": self.quality, "composite": composite}
        picture = await asyncio.to_thread(self._finished, drawn)
        settings = self.settings(image, drawn)
        if self.service.filter is not None:
            verdict = await asyncio.to_thread(judge, self.service.filter, picture, settings["prompt"])
            if isinstance(verdict, Image.Image):
                picture, verdict = verdict, "change"
            self.service.metrics.judged(verdict)
            if verdict is None or verdict == "refuse":
                raise refused(verdict)
            if verdict == "blur":
                self.blurred.add(image)
                # without settings, which would draw what is hidden
                return File(await self.service.encode(blurred(picture), None, **how), MEDIA_TYPES[self.format])
        return File(await self.service.encode(picture, settings, **how), MEDIA_TYPES[self.format])

    def _finished(self, drawn: Image.Image) -> Image.Image:
        """Return an image as its client gets it."""
        picture = fitted(drawn, self.stream.wanted) if self.resized else drawn
        return picture if self.source is None else self.source.overlaid(picture)
