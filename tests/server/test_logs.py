"""Lines of the log: one JSON object each, with the facts of their own request, and no prompts."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from jaxl.server import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the log goes for the time of a test."""
    before = {
        name: (logging.getLogger(name).handlers, logging.getLogger(name).level, logging.getLogger(name).propagate)
        for name in logs.LOGGERS
    }
    stream = io.StringIO()
    logs.configure(stream)
    yield stream
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request(stream: io.StringIO) -> None:
    arguments = {"prompt": "a secret", "num_images": 2, "width": 64, "height": 32, "steps": 9, "scheduler": None}
    with logs.request("abc"):
        logs.note(**logs.facts_of(arguments))
        logs.finish(route="/v1/images/generations", status=200, seconds=1.23456)
    (line,) = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "jaxl.server",
        "message": "request",
        "request_id": "abc",
        "route": "/v1/images/generations",
        "status": 200,
        "seconds": 1.235,
        "images": 2,
        "size": "64x32",
        "steps": 9,
    }


def test_prompts_only_if_asked(stream: io.StringIO) -> None:
    arguments = {"prompt": "a secret\nof two lines", "negative_prompt": "another"}
    with logs.request("abc"):
        logs.note(**logs.facts_of(arguments))
        logs.finish(route="/", status=200, seconds=0)
    assert "secret" not in stream.getvalue()
    assert "another" not in stream.getvalue()
    with logs.request("abc"):
        logs.note(**logs.facts_of(arguments, prompts=True))
        logs.finish(route="/", status=200, seconds=0)
    first, second = lines(stream)
    assert first["images"] == 1
    assert (second["prompt"], second["negative_prompt"]) == ("a secret\nof two lines", "another")


def test_requests_at_once(stream: io.StringIO) -> None:
    async def handle(id: str) -> None:
        with logs.request(id):
            await asyncio.sleep(0)
            logs.note(images=int(id))
            await asyncio.to_thread(logs.note, thread=id)  # as routes do what may block
            logs.finish(route="/", status=200, seconds=0)

    async def together() -> None:
        await asyncio.gather(*(handle(str(i)) for i in range(20)))

    asyncio.run(together())
    written = lines(stream)
    assert len(written) == 20
    assert all(line["request_id"] == line["thread"] == str(line["images"]) for line in written)


def test_any_line(stream: io.StringIO) -> None:
    logs.note(images=1)  # outside of a request: nobody's
    logging.getLogger("uvicorn.error").info("Started\nserver %d", 5)
    logging.getLogger("jaxl.engine.engine").debug("not shown")
    with logs.request("abc"):
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("jaxl.server.errors").exception("failed")
        logs.finish(route="/", status=500, seconds=0)
    started, failed, answered = lines(stream)
    assert started["message"] == "Started\nserver 5"
    assert "request_id" not in started
    assert (failed["level"], failed["request_id"]) == ("error", "abc")
    assert failed["error"].endswith("KeyError: 'x'")
    assert answered["level"] == "error"
