"""A replica without Ray: what it tells of an image, and how it is."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from jaxl.engine import Drawn, Lora, Progress, Request, Started, Status
from jaxl.engine.fake import FakeBackend
from jaxl.errors import EngineError, InputError
from jaxl.server.ray import replica
from jaxl.server.ray.replica import Accepted, Message, Replica, Spent

ASKED = {"prompt": "a", "seed": 1, "steps": 3}


@pytest.fixture
def row_seconds() -> float:
    return 0.01


@pytest.fixture
def one(row_seconds: float) -> Iterator[Replica]:
    one = Replica(lambda: FakeBackend(row_seconds, places=1), {"max_waiting": 1}, stalled_seconds=0.2)
    yield one
    one.engine.close()


async def messages(one: Replica, request: Request) -> list[Message]:
    return [message async for message in one.draw(request)]


def test_an_image(one: Replica) -> None:
    heard = asyncio.run(messages(one, Request(ASKED)))
    assert heard[0] == Accepted("euler", 3)
    assert isinstance(heard[1], Started)
    assert [each.done for each in heard if isinstance(each, Progress)][-1] == 3
    assert isinstance(heard[-2], Drawn)
    assert isinstance(heard[-1], Spent)
    assert heard[-1].seconds > 0


def test_loras(one: Replica) -> None:
    one.backend.known = [Lora("pencil", "pencil.safetensors")]
    assert one.loras() == one.backend.known
    heard = asyncio.run(messages(one, Request({**ASKED, "loras": {"pencil": 1.0}})))
    assert isinstance(heard[0], Accepted)
    assert list(heard[0].facts["lora_hashes"]) == ["pencil"]


def test_pictures_are_enlarged(one: Replica) -> None:
    made = asyncio.run(one.upscale("4x-Sharp", Image.new("RGB", (4, 3), "red"), (8, 6)))
    assert made == Image.new("RGB", (8, 6), "red")
    assert isinstance(asyncio.run(one.upscale("5x", Image.new("RGB", (4, 3)), (8, 6))), InputError)


def test_what_the_router_is_told(one: Replica) -> None:
    one.backend.known = [Lora("pencil", "pencil.safetensors")]
    assert one.record_routing_stats() == {"places": 1, "loras": ["pencil"], "models": [], "image_seconds": 0.0}
    asyncio.run(messages(one, Request(ASKED)))
    assert one.record_routing_stats()["image_seconds"] > 0.02


def test_a_mistake(one: Replica) -> None:
    (heard,) = asyncio.run(messages(one, Request({**ASKED, "steps": 0})))
    assert isinstance(heard, InputError)


def test_who_waits_hears_where_it_is(one: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "STATUS_SECONDS", 0.02)

    async def draw() -> list[Message]:
        first = one.draw(Request({**ASKED, "steps": 100}))
        while not isinstance(await anext(first), Started):
            pass
        second = asyncio.create_task(messages(one, Request({**ASKED, "steps": 1})))
        async for _ in first:
            pass
        return await second

    heard = [each for each in asyncio.run(draw()) if isinstance(each, Status)]
    assert heard
    assert {each.state for each in heard} == {"queued"}


def test_leaving_cancels(one: Replica) -> None:
    async def leave() -> None:
        drawing: Any = one.draw(Request({**ASKED, "steps": 1000}))
        async for message in drawing:
            if isinstance(message, Progress):
                break
        await drawing.aclose()

    asyncio.run(leave())
    assert one.engine.stats().requests_cancelled == 1


@pytest.mark.parametrize("row_seconds", [1.0])
def test_stuck_devices_end_the_process(one: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(replica.os, "_exit", ended.append)
    one.check_health()

    async def check() -> None:
        drawing: Any = one.draw(Request({**ASKED, "steps": 1}))
        await anext(drawing)
        await anext(drawing)
        await asyncio.sleep(0.3)
        one.check_health()
        await drawing.aclose()

    asyncio.run(check())
    assert ended == [1]


def test_broken_devices(one: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(one.backend, "batch", fail)
    for _ in range(3):
        last = asyncio.run(messages(one, Request(ASKED)))[-1]
        assert isinstance(last, EngineError)
    with pytest.raises(EngineError, match="several times"):
        one.check_health()
