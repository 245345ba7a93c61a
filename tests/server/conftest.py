"""An engine that draws without a model, the app on it, and the app behind a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jaxl.engine import Engine
from jaxl.engine.fake import FakeBackend
from jaxl.server.app import create_app
from jaxl.server.connections import Connection
from jaxl.server.service import Service
from jaxl.server.settings import Settings

if TYPE_CHECKING:
    import webuiapi

SIZES = ((32, 32), (64, 32))
A_WHILE = 600.0  # no measure of anything: only who fails waits so long


@pytest.fixture
def row_seconds() -> float:
    """What a step takes; tests that want to catch requests on their way override it."""
    return 0.0


@pytest.fixture
def backend(row_seconds: float) -> FakeBackend:
    return FakeBackend(row_seconds, SIZES[0], sizes_of_images=SIZES)


@pytest.fixture
def set_row_seconds(backend: FakeBackend) -> Callable[[float], None]:
    """Changes what a step takes, for tests that have caught their request."""
    return lambda seconds: setattr(backend, "row_seconds", seconds)


@pytest.fixture
def asked(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The arguments that reach the pipeline."""
    seen, read = [], backend.read

    def remember(arguments: Mapping[str, Any]) -> Any:
        seen.append(arguments)
        return read(arguments)

    monkeypatch.setattr(backend, "read", remember)
    return seen


@pytest.fixture
def engine(backend: FakeBackend) -> Iterator[Engine]:
    with Engine(backend, max_waiting=8) as engine:
        yield engine


@pytest.fixture
def settings() -> Settings:
    """Tests that want others override it."""
    return Settings(model="tiny", sizes=SIZES, schedulers=("euler", "ddim", "dpm++2m_karras"))


@pytest.fixture
def service(engine: Engine, settings: Settings) -> Service:
    return Service(engine, settings)


@pytest.fixture
def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Calls the app without a server; an exception that the app lets out fails the test."""
    with TestClient(app) as client:
        yield client


@pytest.fixture
def limits() -> dict[str, Any]:
    """Of connections, as uvicorn takes them; tests that want some override it."""
    return {}


@pytest.fixture
def url(app: FastAPI, limits: dict[str, Any]) -> Iterator[str]:
    """The address of a real server with the app, without a slash at the end."""
    with _serving(app, limits) as url:
        yield url


@pytest.fixture
def api(url: str) -> Iterator[webuiapi.WebUIApi]:
    """A client of A1111's API."""
    import webuiapi  # not in every environment that runs tests of the server

    where = urlsplit(url)
    api = webuiapi.WebUIApi(host=where.hostname, port=where.port, steps=4)
    with api.session:
        yield api


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for what happens in another thread."""
    return _until


@contextmanager
def _serving(app: Any, limits: dict[str, Any]) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            **limits,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        _until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(A_WHILE)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + A_WHILE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
