"""The status of a request while it is drawn, and server-sent events.

The form of the events: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxl.engine import Drawn, Event, Preview, Progress, Started, Status
from jaxl.server.errors import RESPONSES, ApiError, api_error, error_object
from jaxl.server.kept import KeptRequest
from jaxl.server.service import CurrentService, Service, Stream, gone

# seconds; proxies close connections that are silent for a minute or so
HEARTBEAT = 15.0
# seconds between statuses of a request that waits
STATUS_EVERY = 1.0
COMMENT = b":\n\n"

router = APIRouter(prefix="/v1/requests", tags=["requests"], responses=RESPONSES)


def event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(Response):
    """Sends `messages` as they come, and comments in between so that the connection is kept.

    An error that they raise is sent as the last event, "error". `owner` is entered before them, and left when the last
    message is sent or the client gone.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        messages: AsyncIterator[bytes],
        owner: AbstractAsyncContextManager[Any] | None = None,
        heartbeat: float = HEARTBEAT,
    ):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self.messages = messages
        self.owner = owner or nullcontext()
        self.heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def write_all() -> None:
            try:
                async for message in self.messages:
                    await write(message)
            except Exception as error:
                known = api_error(error, scope.get("state", {}).get("fields"))
                await write(event("error", error_object(known)))
            await write(b"", more=False)

        async def keep() -> None:
            while True:
                await asyncio.sleep(self.heartbeat)
                await write(COMMENT)

        async with self.owner:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await write(COMMENT)
            tasks = [asyncio.create_task(each) for each in (write_all(), gone(receive), keep())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@router.get("/{id}")
async def status(http: HttpRequest, id: str, service: CurrentService) -> dict[str, Any]:
    """Say where a request stands that waits, runs or is kept; a kept one has its pictures too.

    Its id is the X-Request-Id that came with it, or with its answer.
    """
    kept = _kept(http, id, service)
    if kept is None:
        return _status(id, service.engine.status(_find(http, id, service).ticket))
    known = kept.status
    if known is None:
        assert kept.ticket is not None
        known = service.engine.status(kept.ticket)
        if kept.ticket.future.done():  # not all of its pictures are kept yet
            known = replace(known, state="running")
    pictures = [
        {"image": image, "seed": kept.seeds[image], "file": name, "url": file_url(http, name)}
        for image, name in sorted(kept.names.items())
        if service.files.get(name) is not None
    ]
    return {**_status(id, known), "pictures": pictures, "error": kept.error}


@router.delete("/{id}")
async def cancel(http: HttpRequest, id: str, service: CurrentService) -> dict[str, Any]:
    """Give up on a request; a client that waits for its answer gets an error of status 499. Forget a kept one."""
    kept = None if id in service.live else _kept(http, id, service)
    if kept is None:
        _find(http, id, service).ticket.cancel()
    else:
        service.requests.take(id)
        for name in kept.names.values():
            service.files.take(name)
    return {"id": id, "object": "request", "cancelled": kept is None}


@router.get("/{id}/events", response_class=Response, responses={200: {"content": {EventStream.media_type: {}}}})
async def follow(http: HttpRequest, id: str, service: CurrentService) -> EventStream:
    """Server-sent events of a request: status, started, progress, preview, drawn, and done or error.

    Previews come as often as the request asked for with its field `previews`.
    """
    stream = _find(http, id, service)
    return EventStream(_follow(stream, stream.channel.follow(), service))


async def _follow(stream: Stream, events: AsyncIterator[Event], service: Service) -> AsyncIterator[bytes]:
    yield event("status", _status(stream.id, service.engine.status(stream.ticket)))
    async for news in events:
        match news:
            case Started():
                yield event("started", {"image": news.image})
            case Progress():
                yield event("progress", {"image": news.image, "done": news.done, "total": news.total})
            case Preview():
                data = await service.encode_preview(news.pixels)
                shown = {"output_format": "jpeg", "b64_json": base64.b64encode(data).decode()}
                yield event("preview", {"image": news.image, "done": news.done, "total": news.total, **shown})
            case Drawn():
                yield event("drawn", {"image": news.image})
    result = await stream.result()
    made = {"seeds": result.seeds, "scheduler": result.scheduler, "steps": result.steps, "timings": result.timings}
    yield event("done", made)


async def with_status(stream: Stream, service: Service) -> AsyncIterator[Event | Status]:
    """Yield the events of a request and, every STATUS_EVERY seconds until its first image begins, its status."""
    events = aiter(stream)

    async def next_one() -> Event | None:
        return await anext(events, None)

    coming = asyncio.create_task(next_one())
    try:
        while True:
            waits = stream.ticket.started is None
            if waits and not coming.done():
                yield service.engine.status(stream.ticket)
            await asyncio.wait([coming], timeout=STATUS_EVERY if waits else None)
            if not coming.done():
                continue
            news = coming.result()
            if news is None:
                return
            yield news
            coming = asyncio.create_task(next_one())
    finally:
        coming.cancel()


def file_url(http: HttpRequest, name: str) -> str:
    """Return the URL of a kept picture, with the client's name for this server."""
    return str(http.url_for("picture_file", name=name))


def _status(id: str, status: Status) -> dict[str, Any]:
    return {"id": id, "object": "request", **asdict(status)}


def _kept(http: HttpRequest, id: str, service: Service) -> KeptRequest | None:
    """Return a request that is kept, if it is the caller's."""
    kept = service.requests.get(id)
    return kept if kept is not None and kept.owner == http.state.key.owner else None


def _find(http: HttpRequest, id: str, service: Service) -> Stream:
    """Return a request of the caller's. Raises ApiError."""
    stream = service.live.get(id)
    if stream is None or stream.key.owner != http.state.key.owner:
        raise ApiError(404, f"no request {id[:64]!r} waits or runs here; it may be done", code="request_not_found")
    return stream
