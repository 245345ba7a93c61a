"""What draws jobs: as many at a time as keep the devices busy, each as its client's request would have been.

A job's request is handed to the application a second time, now without a client: so it is drawn as any other, and its
answer is the one that a client would have got, which the store keeps. Where the server was in the way (too many wait,
it stops, the disk is full), the job stays in the queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from jaxl.engine import AnyEngine
from jaxl.errors import OutputError
from jaxl.server.errors import ApiError, error_object
from jaxl.server.jobs import webhooks
from jaxl.server.jobs.store import Job, JobStore
from jaxl.server.keys import KeyRing

# images that are to wait for the devices, so that no place is free for long
AHEAD = 4
MOST_AT_ONCE = 64
# seconds between looks at the engine, while jobs wait; and at the store, while none do
EVERY, IDLE = 0.05, 10.0
# after so many processes, or calls of the devices, ended while a job was drawn, the job is taken to be the reason
MOST_STARTS, MOST_FAILURES = 20, 3
# seconds until a job is tried again where nothing says when, and the least that anything is
AGAIN, LEAST_AGAIN = 5.0, 1.0
# a request under a job's id; too many images; the server stops
NOT_NOW = (409, 429, 503)
CANCELLED = 499
FAILED = 400

log = logging.getLogger("jaxl.server")


class Runner:
    """Draws the jobs of a store. `changed` is to be called when one was added.

    engine: draws them. keys: whose they may be. live: the requests in the engine, by their ids, which jobs have too.
    seconds: how long answers are kept. ended: how many jobs have ended since the start, by how.
    """

    def __init__(
        self, store: JobStore, engine: AnyEngine, keys: KeyRing, live: Mapping[str, object], seconds: float
    ) -> None:
        self.store = store
        self.engine = engine
        self.keys = keys
        self.live = live
        self.seconds = seconds
        self.running: dict[str, asyncio.Task[None]] = {}
        self.ended = {"done": 0, "failed": 0}  # how many
        self._failures: dict[str, int] = {}
        # a kind, "id" or "owner", and which one: on the monotonic clock, as the next is
        self._not_before: dict[tuple[str, str], float] = {}
        self._forget_at = 0.0
        self._trouble: str | None = None  # what the log has said of the disk
        self._wake, self._tell_now = asyncio.Event(), asyncio.Event()

    def changed(self) -> None:
        self._wake.set()

    def cancel(self, id: str) -> None:
        """Stop drawing a job that is to be forgotten."""
        if id in self.running:
            self.running[id].cancel()

    @asynccontextmanager
    async def at_work(self, app: ASGIApp) -> AsyncIterator[None]:
        """Draw jobs, and tell webhooks; those that are under way at the end are begun anew the next time."""
        tasks = [asyncio.create_task(work) for work in (self._draw_all(app), self._tell_all())]
        try:
            yield
        finally:
            tasks += self.running.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _draw_all(self, app: ASGIApp) -> None:
        while True:
            self._wake.clear()
            try:
                wait = await self._begin_some(app)
                self._trouble = None
            except OutputError as error:
                if str(error) != self._trouble:
                    log.error("jobs wait: %s", error)
                self._trouble, wait = str(error), AGAIN
            await _until(self._wake, wait)

    async def _begin_some(self, app: ASGIApp) -> float:
        """Begin the jobs that there is room for; return the seconds until there may be room for others."""
        if (now := time.monotonic()) >= self._forget_at:
            await asyncio.to_thread(self.store.forget_old, self.seconds)
            self._forget_at = now + IDLE
        while self._has_room():
            now = time.monotonic()
            self._not_before = {which: at for which, at in self._not_before.items() if at > now}
            without = {kind: [name for of, name in self._not_before if of == kind] for kind in ("id", "owner")}
            ids = [*self.running, *without["id"]]
            job = await asyncio.to_thread(self.store.next, ids, without["owner"])
            if job is None or not self.engine.healthy or self.engine.draining:
                return LEAST_AGAIN if self._not_before else IDLE
            await asyncio.to_thread(self.store.check_room)
            asked = await asyncio.to_thread(self.store.begin, job)
            task = self.running[job.id] = asyncio.create_task(self._draw(job, asked, app))
            task.add_done_callback(partial(self._left, job.id))
        return EVERY

    def _has_room(self) -> bool:
        """Return whether the devices would have to wait for images if no job were begun."""
        on_its_way = sum(id not in self.live for id in self.running)
        waiting = self.engine.stats().waiting + on_its_way
        return not self.running or (waiting < AHEAD and len(self.running) < MOST_AT_ONCE)

    def _left(self, id: str, task: asyncio.Task[None]) -> None:
        del self.running[id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("job %s waits, as its drawing failed", id, exc_info=error)
            self._not_before["id", id] = time.monotonic() + AGAIN
        self._wake.set()

    async def _draw(self, job: Job, asked: bytes | None, app: ASGIApp) -> None:
        status, headers, body, warning = await self._answer(job, asked, app)
        failed = status >= 500 and _code(body) == "engine_error"
        if failed:
            self._failures[job.id] = self._failures.get(job.id, 0) + 1
            failed = not self.engine.healthy or self._failures[job.id] < MOST_FAILURES
        if failed or status in NOT_NOW or (status == CANCELLED and self.engine.draining):
            told = headers.get("retry-after", "")
            again = time.monotonic() + (float(told) if told.isdecimal() else AGAIN)
            self._not_before["id", job.id] = again
            if status == 429:
                self._not_before["owner", job.owner] = again
            await asyncio.to_thread(self.store.put_back, job)
            return
        self._failures.pop(job.id, None)
        said = False
        while True:
            try:
                await asyncio.to_thread(self.store.end, job, status, body, warning)
                break
            except OutputError as error:  # the answer is here: it waits for the disk instead of being drawn again
                if not said:
                    log.error("the answer of job %s waits: %s", job.id, error)
                said = True
                await asyncio.sleep(AGAIN)
        self.ended["done" if status < FAILED else "failed"] += 1
        self._tell_now.set()

    async def _answer(self, job: Job, asked: bytes | None, app: ASGIApp) -> tuple[int, Headers, bytes, str | None]:
        """Have the application answer a job's request; return status, headers, body and warning of its answer."""
        key = self.keys.of(job.owner)
        if key is None:
            return _failed(ApiError(401, "the key of this job is no key any more", code="invalid_api_key"))
        if job.starts >= MOST_STARTS:
            return _failed(
                ApiError(500, f"the server ended {job.starts} times while this job was drawn", type="server_error")
            )
        if asked is None:
            return _failed(ApiError(500, "the file with this job's request is gone", type="server_error"))
        headers = {"content-type": job.media_type, "content-length": str(len(asked)), "x-request-id": job.id}
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": job.path,
            "raw_path": job.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": Headers(headers).raw,
            "client": None,
            "server": None,
            "state": {"job": job, "key": key},
        }
        sent: list[Message] = []
        bodies: list[Message] = [{"type": "http.request", "body": asked}]

        async def receive() -> Message:
            if bodies:
                return bodies.pop()
            return await asyncio.Event().wait()  # pyright: ignore[reportReturnType], as no client ever leaves

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], Headers(raw=sent[0]["headers"]), body, scope["state"].get("remarks") or None

    async def _tell_all(self) -> None:
        """Tell webhooks of the jobs that have their answers."""
        while True:
            self._tell_now.clear()
            with suppress(OutputError):  # of which the other loop tells
                await asyncio.gather(*map(self._tell, await asyncio.to_thread(self.store.to_tell, MOST_AT_ONCE)))
            await _until(self._tell_now, LEAST_AGAIN)

    async def _tell(self, job: Job) -> None:
        assert job.webhook is not None
        refused = await asyncio.to_thread(webhooks.send, job.webhook, shown(job))
        again = None if refused is None or job.told >= len(webhooks.AGAIN) else webhooks.AGAIN[job.told]
        if refused is not None:
            log.warning("the webhook of job %s was not told (%s); %s", job.id, refused, _then(again))
        await asyncio.to_thread(self.store.told, job, again)


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, and no longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def shown(job: Job) -> dict[str, Any]:
    """Return what a client may know of a job that is not being drawn."""
    done = job.status is not None and job.status < FAILED
    state = "queued" if job.ended is None else "done" if done else "failed"
    times = {"created": int(job.created), "ended": None if job.ended is None else int(job.ended)}
    return {"id": job.id, "object": "job", "state": state, **times, "status": job.status, "warning": job.warning}


def _failed(error: ApiError) -> tuple[int, Headers, bytes, None]:
    return error.status_code, Headers({}), json.dumps(error_object(error)).encode(), None


def _code(body: bytes) -> str | None:
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


def _then(again: float | None) -> str:
    return "it will not be told" if again is None else f"another try in {again:g} s"
