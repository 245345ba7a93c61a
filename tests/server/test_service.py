"""Limits, seeds, sizes, events that come from other threads, and requests that somebody gives up."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image

from jaxl.engine import Drawn, Engine, Preview, Progress, Started
from jaxl.errors import CancelledError, InputError, QueueFullError
from jaxl.server import events
from jaxl.server.errors import ApiError
from jaxl.server.events import EventStream
from jaxl.server.keys import ANYBODY
from jaxl.server.service import Service, Stream
from jaxl.server.settings import Settings

SLOW = pytest.mark.parametrize("row_seconds", [0.02])


def test_server_does_without_jax() -> None:
    code = "import sys, jaxl.server.app; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_events_and_result(service: Service) -> None:
    async def draw() -> None:
        async with await service.submit({"prompt": "a", "seed": 5, "steps": 4, "num_images": 2}, previews=2) as stream:
            assert service.live == {stream.id: stream}
            heard = [event async for event in stream]
            result = await stream.result()
        assert [event.image for event in heard if isinstance(event, Started)] == [0, 1]
        assert sum(isinstance(event, Preview) for event in heard) == 4
        assert [event.done for event in heard if isinstance(event, Progress) and event.image == 1][-1] == 4
        pictures = {event.image: event.picture for event in heard if isinstance(event, Drawn)}
        assert [pictures[index] for index in range(2)] == result.images
        assert result.seeds == [5, 6]
        assert service.live == {}
        assert [event async for event in stream.channel.follow()] == []

    asyncio.run(draw())


@SLOW
def test_leaving_early_cancels(service: Service, engine: Engine) -> None:
    async def leave() -> None:
        async with await service.submit({"prompt": "a", "steps": 1000}) as stream:
            async for _ in stream:
                break
        with pytest.raises(CancelledError):
            await stream.result()
        assert service.live == {}

    asyncio.run(leave())
    assert engine.stats().requests_cancelled == 1
    assert 'finished_reason="cancelled"} 1.0' in service.metrics.render().decode()


@SLOW
def test_several_follow(service: Service) -> None:
    async def follow() -> None:
        async with await service.submit({"prompt": "a", "steps": 5}) as stream:
            late = stream.channel.follow()
            own = [event async for event in stream]
            other = [event async for event in late]
            assert own[-len(other) :] == other
            assert isinstance(other[-1], Drawn)

    asyncio.run(follow())


def test_arguments(service: Service) -> None:
    drawn = service.checked({"prompt": "a", "negative_prompt": None, "steps": None})
    made = {"num_images": 1, "prompt_syntax": "literal", "width": 32, "height": 32}
    assert drawn == {"prompt": "a", "seed": drawn["seed"], **made}
    assert 0 <= drawn["seed"] < 2**32
    assert service.checked({"prompt": "a", "seed": 0})["seed"] == 0


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (32, 32)),
        ({"width": 64}, (64, 32)),
        ({"width": 64, "height": 32}, (64, 32)),
        ({"image": Image.new("RGB", (100, 90))}, (32, 32)),
        ({"image": Image.new("RGB", (90, 50))}, (64, 32)),
        ({"image": Image.new("RGB", (90, 50)), "width": 32}, (32, 32)),
    ],
)
def test_sizes(service: Service, given: dict[str, Any], size: tuple[int, int]) -> None:
    drawn = service.checked({"prompt": "a", **given})
    assert (drawn["width"], drawn["height"]) == size


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"width": 48}, "width"),
        ({"width": 64, "height": 64}, "height"),
        ({"width": 1, "height": 1}, "width"),
        ({"num_images": 11}, "num_images"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"negative_prompt_2": "x" * 10_001}, "negative_prompt_2"),
        ({"prompt": "\udc00"}, "prompt"),
    ],
)
def test_limits(service: Service, given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as raised:
        service.checked({"prompt": "a", **given})
    assert raised.value.argument == argument


@SLOW
def test_what_is_refused_leaves_nothing(service: Service) -> None:
    async def refuse() -> None:
        async with await service.submit({"prompt": "a", "steps": 1000, "num_images": 10}, id="x"):
            with pytest.raises(ApiError, match="x is being drawn"):
                await service.submit({"prompt": "a"}, id="x")
            with pytest.raises(QueueFullError):
                await service.submit({"prompt": "a", "num_images": 8})
            with pytest.raises(InputError):
                await service.submit({"prompt": "a", "strength": 3})
            for deadline in (-1.0, 0.9, 601.0, float("nan")):
                with pytest.raises(InputError, match="deadline"):
                    await service.submit({"prompt": "a"}, deadline=deadline)
            assert list(service.live) == ["x"]

    asyncio.run(refuse())


@SLOW
def test_one_id_twice_at_once(service: Service) -> None:
    async def both() -> None:
        asked = [service.submit({"prompt": "a", "steps": 1000}, id="x") for _ in range(2)]
        taken, refused = sorted(
            await asyncio.gather(*asked, return_exceptions=True), key=lambda each: isinstance(each, ApiError)
        )
        assert isinstance(taken, Stream)
        assert isinstance(refused, ApiError)
        taken.ticket.cancel()
        await taken.channel.ended.wait()
        (await service.submit({"prompt": "a"}, id="x")).ticket.cancel()

    asyncio.run(both())


def test_settings_of(service: Service) -> None:
    arguments = {"prompt": "a", "steps": 4, "num_images": 3, "mask": None, "image": Image.new("RGB", (8, 8))}
    made = service.settings_of(arguments, Image.new("RGB", (64, 32)), 9, "ddim")
    version = made.pop("version")
    assert isinstance(version, str)
    assert made == {
        "model": "tiny",
        "prompt": "a",
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "seed": 9,
        "width": 64,
        "height": 32,
    }
    # around a mask less than the picture is drawn, in the size that was asked for
    cropped = service.settings_of({**arguments, "width": 32, "height": 32}, Image.new("RGB", (64, 32)), 9, "ddim")
    assert (cropped["width"], cropped["height"]) == (32, 32)


def test_signing_needs_files_that_are_there(engine: Engine, tmp_path: Any) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(InputError, match="c2pa_cert"):
        Service(engine, Settings(c2pa_certificate=missing, c2pa_key=missing))


class Connection:
    """Collects what an app sends; the client leaves when told."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


SCOPE: dict[str, Any] = {"type": "http"}


def test_stream_begins_at_once_and_keeps_the_connection() -> None:
    async def run() -> None:
        connection, go_on = Connection(), asyncio.Event()

        async def messages() -> AsyncIterator[bytes]:
            await go_on.wait()
            yield events.event("news", {"a": 1})

        stream = asyncio.create_task(
            EventStream(messages(), heartbeat=0.001)(SCOPE, connection.receive, connection.send)
        )
        while connection.body.count(events.COMMENT) < 3:
            await asyncio.sleep(0)
        assert connection.sent[0]["status"] == 200
        go_on.set()
        await stream
        assert connection.body.endswith(b'event: news\ndata: {"a": 1}\n\n')
        assert connection.sent[-1]["more_body"] is False

    asyncio.run(run())


def test_stream_ends_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    async def run(error: Exception) -> bytes:
        connection = Connection()

        async def messages() -> AsyncIterator[bytes]:
            raise error
            yield b""

        scope = {**SCOPE, "state": {"fields": {"width": "size"}}}
        await EventStream(messages())(scope, connection.receive, connection.send)
        return connection.body

    body = asyncio.run(run(InputError("width", 5, "give more")))
    assert b'event: error\ndata: {"error": {"message": "size=5: give more"' in body
    body = asyncio.run(run(RuntimeError("secret")))
    assert b"event: error" in body
    assert b"secret" not in body
    assert "secret" in caplog.text


@SLOW
@pytest.mark.parametrize("at_once", [False, True])
def test_client_that_leaves_a_stream_frees_the_place(service: Service, engine: Engine, at_once: bool) -> None:
    async def run() -> None:
        connection = Connection()
        stream = await service.submit({"prompt": "a", "steps": 1000})

        async def messages() -> AsyncIterator[bytes]:
            async for _ in stream:
                yield b"x"

        if at_once:
            connection.gone.set()
        response = asyncio.create_task(
            EventStream(messages(), owner=stream)(SCOPE, connection.receive, connection.send)
        )
        while not at_once and b"x" not in connection.body:
            await asyncio.sleep(0.001)
        connection.gone.set()
        await response
        with pytest.raises(CancelledError):
            await stream.result()

    asyncio.run(run())
    assert engine.stats().requests_cancelled == 1


@SLOW
def test_draw_that_is_cancelled_frees_the_place(
    service: Service, engine: Engine, until: Callable[[Callable[[], bool]], None]
) -> None:
    """As when the server is stopped."""

    async def run() -> None:
        connection = Connection()
        from starlette.requests import Request

        http = Request({"type": "http", "state": {"request_id": "x", "key": ANYBODY}}, connection.receive)

        async def draw() -> None:
            async with service.attended(http, {"prompt": "a", "steps": 1000}) as stream:
                await stream.result()

        task = asyncio.create_task(draw())
        while "x" not in service.live:
            await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    until(lambda: engine.stats().requests_cancelled == 1)
