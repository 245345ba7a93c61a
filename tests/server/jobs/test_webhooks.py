"""Webhooks: which addresses are called, and that what is told arrives."""

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jaxl.errors import InputError
from jaxl.server.jobs import runner, webhooks
from jaxl.server.service import Service
from jaxl.server.settings import Settings

ALLOWED = ("https://example.org/hooks/", "http://127.0.0.1:8080")


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://example.org/hooks/a?b=c", True),
        ("https://example.org:443/hooks/", True),
        ("https://EXAMPLE.org/hooks", True),
        ("http://127.0.0.1:8080/any", True),
        ("http://127.0.0.1:8080", True),
        ("https://example.org/hookss", False),
        ("https://example.org/", False),
        ("https://example.org/hooks/../admin", False),
        ("https://example.org/hooks/%2E%2e/admin", False),
        ("https://example.org/hooks/..%2fadmin", False),
        ("https://example.org.evil.example/hooks/", False),
        ("https://example.org@evil.example/hooks/", False),
        ("https://evil.example\\@example.org/hooks/", False),
        ("https://user:secret@example.org/hooks/", False),
        ("https://example.org/hooks/#a", False),
        ("https://example.org:8443/hooks/", False),
        ("http://example.org/hooks/", False),
        ("http://127.0.0.1:80800/", False),
        ("http://127.1:8080/", False),
        ("http://[::1", False),
        ("file:///etc/passwd", False),
        ("https://example.org/hooks/ a", False),
        ("https://example.org/hooks/\r\nHost: a", False),
        ("", False),
    ],
)
def test_addresses(url: str, passes: bool) -> None:
    if passes:
        assert webhooks.check(url, ALLOWED) == url
    else:
        with pytest.raises(InputError, match="X-Jaxl-Webhook"):
            webhooks.check(url, ALLOWED)


@pytest.mark.parametrize("text", ["example.org", "ftp://example.org", "https://", "https://example.org/?a", ""])
def test_what_an_operator_may_allow(text: str) -> None:
    with pytest.raises(InputError, match="webhook_allow"):
        webhooks.read_allowed(text)


class Receiver:
    """A server that answers with `statuses`, one after the other, and then 200; and what it was sent."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.heard.append((self.path, told))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            do_GET = do_POST  # noqa: N815, as BaseHTTPRequestHandler calls it

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, receiver: Receiver) -> Settings:
    return replace(settings, jobs=tmp_path / "jobs", webhook_allow=(f"{receiver.url}/jobs",))


@pytest.fixture
def client(app: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(runner, "LEAST_AGAIN", 0.01)
    monkeypatch.setattr(webhooks, "AGAIN", (0.01, 0.01))
    with TestClient(app) as client:
        yield client
    assert service.jobs is not None
    service.jobs.store.close()


def test_what_is_told(client: TestClient, receiver: Receiver, until: Any, service: Service) -> None:
    """The job, and again until it is taken; a redirect is an answer like any other that is not."""
    receiver.statuses = [307, 500]
    headers = {"Prefer": "respond-async", "X-Request-Id": "mine", "X-Jaxl-Webhook": f"{receiver.url}/jobs/a?b=c"}
    assert client.post("/v1/images/generations", json={"prompt": "a"}, headers=headers).status_code == 202
    until(lambda: len(receiver.heard) == 3)
    assert {path for path, _ in receiver.heard} == {"/jobs/a?b=c"}
    job = client.get("/v1/jobs/mine").json()
    del job["answer"]
    assert receiver.heard[-1][1] == job
    assert job["state"] == "done"
    assert service.jobs is not None
    store = service.jobs.store
    until(lambda: store.to_tell(1) == [] and getattr(store.find("mine", ""), "told", 0) == 3)


def test_who_does_not_listen_is_given_up(client: TestClient, receiver: Receiver, until: Any, service: Service) -> None:
    receiver.statuses = [500] * 10
    headers = {"Prefer": "respond-async", "X-Request-Id": "mine", "X-Jaxl-Webhook": f"{receiver.url}/jobs"}
    client.post("/v1/images/generations", json={"prompt": "a"}, headers=headers)
    assert service.jobs is not None
    store = service.jobs.store
    until(lambda: getattr(store.find("mine", ""), "told", 0) == len(webhooks.AGAIN) + 1)
    assert store._rows.execute("SELECT tell_at FROM jobs").fetchone() == (None,)


def test_an_address_that_is_not_allowed(client: TestClient, receiver: Receiver) -> None:
    headers = {"Prefer": "respond-async", "X-Jaxl-Webhook": f"{receiver.url}/other"}
    answer = client.post("/v1/images/generations", json={"prompt": "a"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Jaxl-Webhook")
    assert client.get("/v1/jobs").json()["data"] == []
