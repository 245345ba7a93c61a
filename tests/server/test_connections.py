"""Connections that say nothing, say it too slowly, or are too many."""

import logging
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest

from jaxl.server import connections

Until = Callable[[Callable[[], bool]], None]

HALF = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=600)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("before", [b"", HALF + b"\r\n"])
def test_headers_that_do_not_end(
    url: str, before: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    connection = connect(url)
    connection.sendall(before)
    if before:
        answer = connection.recv(4096)
        while not answer.endswith(b"}"):  # headers and body may come apart
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
    with caplog.at_level(logging.WARNING, "jaxl.server"):
        connection.sendall(HALF)
        assert rest(connection).startswith(b"HTTP/1.1 408")
    assert "headers that did not end within 0.1 s from 127.0.0.1" in caplog.messages


@pytest.mark.parametrize("limits", [{"timeout_keep_alive": 0.1}])
@pytest.mark.parametrize("before", [b"", HALF + b"\r\n"])
def test_connection_that_says_nothing(url: str, before: bytes) -> None:
    connection = connect(url)
    connection.sendall(before)
    assert rest(connection).startswith(b"HTTP/1.1 200" if before else b"")


@pytest.mark.parametrize("limits", [{"limit_concurrency": 1}])
def test_too_many(url: str, until: Until, caplog: pytest.LogCaptureFixture) -> None:
    def status() -> int:
        return httpx.get(f"{url}/v1/models").status_code

    with caplog.at_level(logging.WARNING, "jaxl.server"), connect(url):
        until(lambda: status() == 503)
        assert "more than 1 connections: another one from 127.0.0.1" in caplog.messages
        answer = httpx.get(f"{url}/v1/models")
        assert answer.json()["error"]["code"] == "overloaded"
        assert answer.headers["Connection"] == "close"
        assert 5 <= int(answer.headers["Retry-After"]) <= 8
        assert httpx.get(f"{url}/health/live").status_code == 200, "or whoever watches restarts it"
    until(lambda: status() == 200)
