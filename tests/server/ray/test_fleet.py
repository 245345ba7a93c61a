"""Replicas that share the images of a request, die, and are drained; and Ray's own HTTP server before them."""

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.engine import Event, Lora, Progress, Request
from jaxl.errors import CancelledError, DeadlineError, DrainingError, InputError, QueueFullError
from jaxl.server.app import create_app
from jaxl.server.ray.fleet import Fleet
from jaxl.server.ray.router import BucketAffineRouter
from jaxl.server.ray.scale import Scale
from jaxl.server.service import Service
from jaxl.server.settings import Settings

Until = Callable[[Callable[[], bool]], None]

SLOW = pytest.mark.parametrize("row_seconds", [0.02])
GENERATIONS = "/v1/images/generations"


def asked(seed: int = 1, **more: Any) -> Request:
    return Request({"prompt": "a", "seed": seed, "steps": 5, "width": 32, "height": 32, **more})


@contextmanager
def fleet_of(handle: Any) -> Iterator[Fleet]:
    fleet = Fleet(handle)
    fleet.start()
    try:
        fleet.describe()
        yield fleet
    finally:
        fleet.close()


def alone(fleet: Fleet, seed: int, steps: int) -> bytes:
    return fleet.submit(asked(seed, steps=steps)).future.result(600).images[0].tobytes()


@SLOW
def test_images_of_a_request_are_shared(engine: Fleet, until: Until) -> None:
    ticket = engine.submit(asked(num_images=8, steps=50))
    until(lambda: engine.stats().running > 4)  # more than one replica draws
    until(lambda: engine.stats().places == 8)
    images = ticket.future.result(600).images
    assert images[3].tobytes() == alone(engine, 4, 50)
    stats = engine.stats()
    assert (stats.images_done, stats.requests_done, stats.rows_done) == (9, 2, 450)


def test_loras_are_those_of_the_replicas(engine: Fleet) -> None:
    assert engine.loras() == [Lora("pencil", "pencil.safetensors")]
    ticket = engine.submit(asked(loras={"pencil": 0.5}))
    assert list(ticket.facts["lora_hashes"]) == ["pencil"]
    ticket.future.result(600)
    with pytest.raises(InputError, match="did you mean 'pencil'"):
        engine.submit(asked(loras={"pensil": 0.5}))


def test_a_replica_enlarges_pictures(engine: Fleet) -> None:
    assert engine.upscale("4x-Sharp", Image.new("RGB", (4, 3), "red"), (8, 6)) == Image.new("RGB", (8, 6), "red")
    with pytest.raises(InputError, match="did you mean '4x-Sharp'"):
        engine.upscale("4x-Sharpp", Image.new("RGB", (4, 3)), (8, 6))


def images_in(fleet: Fleet) -> list[int]:
    """Of each replica, those in the making."""
    return [stats.running for _, stats, _ in fleet.handle.broadcast("stats").results()]


def idle(fleet: Fleet) -> bool:
    """Whether no replica has anything to do."""
    return not any(stats.running + stats.waiting for _, stats, _ in fleet.handle.broadcast("stats").results())


@SLOW
def test_images_of_one_size_meet_in_one_replica(engine: Fleet, until: Until) -> None:
    def two_meet() -> bool:  # once the router has heard how many places the replicas have
        tickets = [engine.submit(asked(steps=1000)) for _ in range(2)]
        until(lambda: sum(images_in(engine)) == 2)
        met = 2 in images_in(engine)
        for ticket in tickets:
            ticket.cancel()
        until(lambda: idle(engine))
        return met

    until(two_meet)
    tickets = [engine.submit(asked(steps=1000)) for _ in range(3)]
    until(lambda: sorted(images_in(engine)) == [0, 3])
    tickets.append(engine.submit(asked(steps=1000, width=64, num_images=2)))
    until(lambda: sorted(images_in(engine)) == [2, 3])
    tickets.append(engine.submit(asked(steps=1000, num_images=2)))  # for which the first has no room
    until(lambda: sorted(images_in(engine)) == [3, 4])
    tickets.append(engine.submit(asked(steps=1000)))
    until(lambda: sorted(images_in(engine)) == [4, 4])
    for ticket in tickets:
        ticket.cancel()
    until(lambda: idle(engine))
    engine.submit(asked(num_images=4)).future.result(600)


@SLOW
def test_who_gives_up_while_it_is_sent_leaves_nothing(engine: Fleet, until: Until) -> None:
    """Neither images in a replica, which would take twenty seconds, nor counts in the router."""
    routers: list[Any] = [each for each in gc.get_objects() if type(each) is BucketAffineRouter]
    stop = threading.Event()

    def ask() -> None:
        for _ in range(40):
            with suppress(CancelledError, QueueFullError):
                engine.submit(asked(steps=1000))

    def give_up() -> None:
        while not stop.is_set():
            for ticket in engine.tickets():
                ticket.cancel()
            time.sleep(0.001)

    threads = [threading.Thread(target=target) for target in (give_up, *[ask] * 5)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    began = time.monotonic()
    until(lambda: idle(engine) and not any(router._shares for router in routers))
    assert time.monotonic() - began < 10


@SLOW
def test_full_queues(engine: Fleet, until: Until) -> None:
    tickets = [engine.submit(asked(num_images=8, steps=1000)) for _ in range(2)]
    until(lambda: engine.stats().running == 8)
    tickets.append(engine.submit(asked(steps=1000)))
    until(lambda: engine.status(tickets[2]).position > 0)
    assert engine.status(tickets[2]).starts_in > 1
    with pytest.raises(QueueFullError) as raised:
        engine.submit(asked(num_images=20, steps=1000))
    assert raised.value.retry_after >= 1
    assert engine.stats().requests_refused == 1
    for ticket in tickets:
        ticket.cancel()
    until(lambda: idle(engine))


@SLOW
def test_deadline(engine: Fleet) -> None:
    ticket = engine.submit(Request({"prompt": "a", "seed": 1, "steps": 1000}, deadline=0.3))
    with pytest.raises(DeadlineError):
        ticket.future.result(600)


@SLOW
def test_drain(engine: Fleet, until: Until) -> None:
    tickets = [engine.submit(asked(seed, steps=20)) for seed in range(12)]
    assert engine.drain(600)
    assert all(ticket.future.done() and ticket.future.exception() is None for ticket in tickets)
    with pytest.raises(DrainingError):
        engine.submit(asked())


@pytest.fixture(scope="session")
def mortal(start: Any) -> tuple[Any, Path]:
    """Two replicas to kill, that take 20 ms for a row."""
    handle, folder = start("mortal", Scale(2, 2, 2))
    (folder / "row_seconds").write_text("0.02")
    return handle, folder


def test_killed_replica_loses_nothing(mortal: tuple[Any, Path], until: Until) -> None:
    handle, folder = mortal
    (first, second) = folder.glob("replica-*")
    heard: list[Event] = []
    with fleet_of(handle) as fleet:
        until(lambda: fleet.stats().places == 8)
        tickets = [fleet.submit(asked(seed, steps=60), heard.append) for seed in range(12)]
        until(lambda: fleet.stats().running == 8)
        until(lambda: any(isinstance(each, Progress) and each.done > 5 for each in heard))
        os.kill(int(first.name.removeprefix("replica-")), signal.SIGKILL)
        drawn = [ticket.future.result(600).images[0].tobytes() for ticket in tickets]
        assert drawn == [alone(fleet, seed, 60) for seed in range(12)]
        assert [ticket.done for ticket in tickets] == [60] * 12
        until(lambda: fleet.stats().places == 8)
    assert {first, second} < set(folder.glob("replica-*"))


def test_killed_replica_breaks_no_stream(mortal: tuple[Any, Path], settings: Settings, until: Until) -> None:
    """A client that has seen previews of an image gets the rest of them, once, and the image."""
    handle, folder = mortal
    with fleet_of(handle) as fleet:
        until(lambda: fleet.stats().places == 8)
        client = TestClient(create_app(Service(fleet, settings)))
        body = {"prompt": "a", "seed": 1, "num_inference_steps": 60, "stream": True, "partial_images": 3, "n": 4}
        names: list[tuple[str, int]] = []
        with client.stream("POST", GENERATIONS, json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if not names:
                        for path in folder.glob("replica-*"):
                            with suppress(ProcessLookupError):
                                os.kill(int(path.name.removeprefix("replica-")), signal.SIGKILL)
                                break
                    names.append((data["type"].rpartition(".")[2], data["image_index"]))
        for image in range(4):
            own = [name for name, index in names if index == image]
            assert own == ["partial_image"] * 3 + ["completed"]


class TestIngress:
    def test_draws(self, ingress: str, until: Until) -> None:
        until(lambda: httpx.get(f"{ingress}/health/ready").status_code == 200)
        asked = {"prompt": "a", "num_inference_steps": 3, "size": "64x32"}
        answer = httpx.post(f"{ingress}{GENERATIONS}", json=asked, headers={"X-Request-Id": "mine"})
        assert (answer.status_code, answer.headers["X-Request-Id"]) == (200, "mine")
        assert answer.json()["size"] == "64x32"
        answer = httpx.post(f"{ingress}{GENERATIONS}", json={**asked, "n": 0})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")

    def test_streams_as_it_comes_and_frees_the_place_of_who_leaves(self, ingress: str, until: Until) -> None:
        until(lambda: httpx.get(f"{ingress}/health/ready").status_code == 200)
        asked = {"prompt": "a", "num_inference_steps": 1000, "stream": True, "previews": 90}
        with httpx.stream("POST", f"{ingress}{GENERATIONS}", json=asked, timeout=600) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("event: "))
            assert next(lines) == next(lines) == "event: image_generation.partial_image"  # twenty seconds from its end
            assert "jaxl:slots_in_use 1.0" in httpx.get(f"{ingress}/metrics").text
        until(lambda: "jaxl:slots_in_use 0.0" in httpx.get(f"{ingress}/metrics").text)
