"""Two replicas with engines that draw without a model, on a Ray of their own, in the place of the one engine."""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jaxl.server.ray.local import start_ray

with warnings.catch_warnings():  # Ray's own
    warnings.simplefilter("ignore")
    import ray
    from ray import cloudpickle, serve

from jaxl.engine import Lora, Request
from jaxl.engine.fake import FakeBackend
from jaxl.server.app import create_app
from jaxl.server.ray.deployment import Threads, replicas, threads, with_ingress
from jaxl.server.ray.fleet import Fleet
from jaxl.server.ray.scale import Scale
from jaxl.server.service import Service
from jaxl.server.settings import EngineOptions, Settings

SIZES = ((32, 32), (64, 32))
MAX_WAITING = 8
A_WHILE = 600.0  # no measure of anything: only who fails waits so long

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which the replicas cannot import


# tests that count the places of one engine
OF_ONE = (
    *("test_full_queue", "test_progress", "test_progress_and_interrupt"),
    *("test_skip_goes_on_with_the_next", "test_who_waits_is_told"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.path.name == "test_contract.py" and item.originalname in OF_ONE]  # pyright: ignore[reportAttributeAccessIssue]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


class RemoteBackend(FakeBackend):
    """Takes what a row takes from a file, which tests write; says in another which process it is."""

    def __init__(self, folder: Path):
        super().__init__(0.0, SIZES[0], sizes_of_images=SIZES, known=[Lora("pencil", "pencil.safetensors")])
        self.folder = folder
        (folder / f"replica-{os.getpid()}").touch()

    @property
    def row_seconds(self) -> float:
        return float((self.folder / "row_seconds").read_text())

    @row_seconds.setter
    def row_seconds(self, _: float) -> None:
        pass

    @property
    def defaults(self) -> dict[str, Any]:
        return {"sizes": SIZES, "scheduler": "euler", "steps": 25, "guidance_scale": 5.0}


@contextmanager
def fleet_of(handle: Any) -> Iterator[Fleet]:
    fleet = Fleet(handle, MAX_WAITING)
    fleet.start()
    fleet.describe()
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of Ray's own HTTP server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with warnings.catch_warnings():  # jax's of forks, which end in other programs here
        warnings.simplefilter("ignore")
        start_ray(8)
    http = {"host": "127.0.0.1", "port": port}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config={"log_level": "WARNING"})
    yield f"http://127.0.0.1:{port}"
    _end()


@pytest.hookimpl(trylast=True)  # after the fixtures of the test itself
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """After the last test here Ray ends, whose processes take a fifth of a core without doing anything."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        _end()


def _end() -> None:
    if ray.is_initialized():  # else Ray would begin, to end
        serve.shutdown()
        ray.shutdown()


Start = Callable[[str, Scale], Any]


@pytest.fixture(scope="session")
def start(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts replicas; gives their handle and the folder that they read and write."""

    def start(name: str, scale: Scale) -> Any:
        folder = tmp_path_factory.mktemp(name)
        write_row_seconds(folder, 0.0)
        return serve.run(application(folder, scale), name=name, route_prefix=None), folder

    return start


def application(folder: Path, scale: Scale) -> Any:
    return replicas(partial(RemoteBackend, folder), scale, EngineOptions(MAX_WAITING), Settings())


@pytest.fixture(scope="session")
def ingress(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the whole application as `serve run` has it, with one replica."""
    folder = tmp_path_factory.mktemp("ingress")
    write_row_seconds(folder, 0.02)
    whole = with_ingress(application(folder, Scale()), Settings(model="tiny", drain_timeout=1.0), MAX_WAITING)
    serve.run(whole, name="ingress", route_prefix="/")
    return cluster


def write_row_seconds(folder: Path, seconds: float) -> None:
    new = folder / "row_seconds.new"
    new.write_text(str(seconds))
    new.replace(folder / "row_seconds")  # at once, as it is being read


@pytest.fixture(scope="session")
def two(start: Start) -> Any:
    """Two replicas that all tests share."""
    return start("two", Scale(2, 2, 2))


@pytest.fixture
def engine(two: Any, row_seconds: float) -> Iterator[Fleet]:
    handle, folder = two
    write_row_seconds(folder, row_seconds)
    with fleet_of(handle) as fleet:
        yield fleet


@pytest.fixture
def set_row_seconds(two: Any) -> Callable[[float], None]:
    return partial(write_row_seconds, two[1])


@pytest.fixture
def asked(engine: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The arguments of the requests whose images the replicas get."""
    seen, submit = [], engine.submit

    def remember(request: Request, listener: Any = None) -> Any:
        seen.append(request.arguments)
        return submit(request, listener)

    monkeypatch.setattr(engine, "submit", remember)
    return seen


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for what happens in another process, which may have to start."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + A_WHILE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


@pytest.fixture
def service(engine: Fleet, settings: Settings) -> Service:
    return Service(engine, settings)


@pytest.fixture
def app(service: Service) -> Threads:
    return Threads(create_app(service), threads(MAX_WAITING))
