"""What a fleet does about replicas that end while they draw, with a replica in this process and no Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError

from jaxl.engine import Drawn, Event, Preview, Progress, Request, Started
from jaxl.engine.fake import FakeBackend
from jaxl.errors import EngineError
from jaxl.server.ray import fleet as fleet_module
from jaxl.server.ray import replica as replica_module
from jaxl.server.ray.deployment import Threads, without_request_id
from jaxl.server.ray.fleet import Fleet, parts
from jaxl.server.ray.replica import Message, Replica

ASKED = {"prompt": "a", "seed": 3, "steps": 20}


class Handle:
    """Of a deployment: its first `deaths` calls end after so many messages of a kind. `asked` are all of them."""

    def __init__(self, replica: Replica, deaths: int, messages: int, kind: type = object):
        self.replica, self.deaths, self.messages, self.kind = replica, deaths, messages, kind
        self.asked: list[tuple[int, int]] = []

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, request: Request) -> AsyncIterator[Message]:
        self.deaths -= 1
        self.asked.append((request.arguments["seed"], request.arguments["num_images"]))
        return self.draw(request, self.messages if self.deaths >= 0 else None)

    async def draw(self, request: Request, messages: int | None) -> AsyncIterator[Message]:
        drawing: Any = self.replica.draw(request)
        async for message in drawing:
            yield message
            if messages is not None and isinstance(message, self.kind):
                messages -= 1
            if messages == 0:
                await drawing.aclose()
                raise ActorDiedError

    def broadcast(self, _: str) -> Handle:
        return self

    async def results_async(self, **_: Any) -> list[Any]:
        return [self.replica.stats()]


@pytest.fixture
def one() -> Iterator[Replica]:
    one = Replica(lambda: FakeBackend(0.001), {})
    yield one
    one.engine.close()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def draw(one: Replica, deaths: int, messages: int) -> tuple[bytes, list[Event]]:
    handle: Any = Handle(one, deaths, messages)
    fleet = Fleet(handle)
    fleet.start()
    heard: list[Event] = []
    try:
        ticket = fleet.submit(Request(ASKED, previews=3), heard.append)
        result = ticket.future.result(600)
        assert (ticket.done, ticket.total, result.steps, result.seeds) == (20, 20, 20, [3])
    finally:
        fleet.close()
    return result.images[0].tobytes(), heard


@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.parametrize("messages", [1, 2, 7, 12])
def test_the_same_image_and_nothing_twice(one: Replica, deaths: int, messages: int) -> None:
    picture, _ = draw(one, 0, 0)
    again, heard = draw(one, deaths, messages)
    assert again == picture
    counts = Counter(type(event) for event in heard)
    assert (counts[Started], counts[Preview]) == (1, 3)
    for kind in (Progress, Preview):
        done = [event.done for event in heard if isinstance(event, kind)]
        assert done == sorted(set(done))


def test_an_image_that_ends_every_replica(one: Replica) -> None:
    with pytest.raises(EngineError, match="3 replicas ended"):
        draw(one, 3, 5)


def test_parts() -> None:
    assert parts(range(6), 4) == [range(4), range(4, 6)]
    assert parts([0, 2, 3, 5], 4) == [range(1), range(2, 4), range(5, 6)]


@pytest.mark.parametrize("drawn", [1, 3])
def test_what_a_replica_has_drawn_is_kept(one: Replica, drawn: int) -> None:
    handle: Any = Handle(one, 1, drawn, Drawn)
    fleet = Fleet(handle)
    fleet.start()
    heard: list[Event] = []
    try:
        fleet.places = 4
        asked = Request({**ASKED, "num_images": 6}, previews=2)
        images = fleet.submit(asked, heard.append).future.result(600).images
        together = [image.tobytes() for image in images]
        assert sum(n for _, n in handle.asked) == 6 + 4 - drawn
        assert {(3, 4), (7, 2)} < set(handle.asked)
        alone = [fleet.submit(Request({**ASKED, "seed": 3 + i})).future.result(600).images[0] for i in range(6)]
        assert together == [image.tobytes() for image in alone]
    finally:
        fleet.close()
    counts = Counter((type(event), event.image) for event in heard)
    assert all(counts[kind, i] == n for kind, n in ((Started, 1), (Preview, 2), (Drawn, 1)) for i in range(6))


class Stream:
    """As Ray's; what ends it has ended `messages` already."""

    def __init__(self, messages: AsyncIterator[Message]):
        self.messages = messages

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.messages

    def cancel(self) -> None:
        pass


class TwoHandle(Handle):
    """Of two replicas; the first calls go to the first."""

    def __init__(self, replicas: list[Replica], calls: int):
        super().__init__(replicas[0], 0, 0)
        self.replicas, self.calls = replicas, calls

    def remote(self, request: Request) -> Any:
        self.calls -= 1
        self.asked.append((request.arguments["seed"], request.arguments["num_images"]))
        return Stream(self.replicas[self.calls < 0].draw(request))

    async def results_async(self, **_: Any) -> list[Any]:
        return [replica.stats() for replica in self.replicas]


def test_who_waits_goes_to_a_replica_with_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "STATUS_SECONDS", 0.02)
    monkeypatch.setattr(fleet_module, "WATCH_EVERY", 0.02)
    replicas = [Replica(lambda: FakeBackend(0.01, places=2), {}) for _ in range(2)]
    handle: Any = TwoHandle(replicas, calls=4)
    fleet = Fleet(handle)
    fleet.places = 2
    asked = [Request({**ASKED, "seed": 10 * i, "num_images": n, "steps": 500}) for i, n in enumerate((2, 2, 1, 2), 1)]
    try:
        fleet.start()
        fleet.submit(asked[0])
        _wait(lambda: fleet.stats().running == 2)
        for request in asked[1:]:
            fleet.submit(request)
        _wait(lambda: fleet.stats().running == 4)  # of the second and none of the last two, for whom no room is left
        assert handle.asked == [(10, 2), (20, 2), (30, 1), (40, 2), (20, 2)]
        _wait(lambda: [replica.engine.stats().waiting for replica in replicas] == [3, 0])
    finally:
        fleet.close()
        for replica in replicas:
            replica.engine.close()


@pytest.mark.parametrize(("given", "answered"), [("mine", None), ("not valid", "made")])
def test_rays_server_adds_the_id_of_a_request(given: str, answered: str | None) -> None:
    app = FastAPI()

    @app.middleware("http")
    async def mark(http: Any, call_next: Any) -> Any:
        response = await call_next(http)
        response.headers["X-Request-Id"] = "mine" if given == "mine" else "made"
        return response

    with TestClient(Threads(without_request_id(app), 4)) as client:
        assert client.get("/", headers={"X-Request-Id": given}).headers.get("X-Request-Id") == answered
