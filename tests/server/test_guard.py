"""What every request passes first: ids, keys, origins, hosts, content types, and bodies that are too large."""

import base64
import http.client
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from fastapi.testclient import TestClient

from jaxl.engine import Engine
from jaxl.errors import OutputError
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings

GENERATIONS = "/v1/images/generations"
ASKED = {"prompt": "a"}
PAGE = "https://pages.example"


@pytest.fixture
def settings(settings: Settings, api_keys: tuple[str, ...]) -> Settings:
    return replace(settings, origins=(PAGE,), max_body=2000, api_keys=api_keys)


@pytest.fixture
def api_keys() -> tuple[str, ...]:
    return ()


KEYS = pytest.mark.parametrize("api_keys", [("one", "two")])


def error(answer: Any) -> dict[str, Any]:
    return answer.json()["error"]


def test_ids(client: TestClient) -> None:
    ours = {client.get("/v1/models").headers["X-Request-Id"] for _ in range(2)}
    assert len(ours) == 2
    for given, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("", False)):
        answer = client.get("/nowhere", headers={"X-Request-Id": given})
        assert answer.status_code == 404
        assert (answer.headers["X-Request-Id"] == given) is kept
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@KEYS
def test_keys(client: TestClient) -> None:
    basic = base64.b64encode(b"anybody:two").decode()
    for authorization, status in (
        (None, 401),
        ("Bearer three", 401),
        ("Bearer ", 401),
        ("Bearer one two", 401),
        ("Basic !", 401),
        ("Digest one", 401),
        ("Bearer one", 200),
        ("bearer two", 200),
        (f"Basic {basic}", 200),
    ):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == status, authorization
        if status == 401:
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert error(answer)["code"] == "invalid_api_key"
    assert client.get("/health/ready").status_code == 200
    assert client.get("/metrics").status_code == 200
    assert client.get("/openapi.json").status_code == 401


@KEYS
def test_browsers_ask_for_a_key(engine: Engine, settings: Settings) -> None:
    """For the web page alone, if there is one: what else answers 401 is not shown to people."""
    client = TestClient(create_app(Service(engine, replace(settings, ui=True))))
    for path, scheme in (("/", "Basic"), ("/v1/models", "Bearer")):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"].split()[0]) == (401, scheme)


@KEYS
def test_keys_of_clients(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="two") as known:
        assert known.images.generate(prompt="a").data
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="three") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.images.generate(prompt="a")


def test_origins(client: TestClient) -> None:
    for origin, status in (
        (None, 200),
        ("http://testserver", 200),
        (PAGE, 200),
        ("https://evil.example", 403),
        ("https://pages.example.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ):
        headers = {} if origin is None else {"Origin": origin}
        answer = client.post(GENERATIONS, json=ASKED, headers=headers)
        assert answer.status_code == status, origin
        allowed = PAGE if origin == PAGE else None
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


@KEYS
def test_preflight(client: TestClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    answer = client.options(GENERATIONS, headers={"Origin": PAGE, **asked})
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert client.options(GENERATIONS, headers={"Origin": "https://evil.example", **asked}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7", 200),
        ("pages.example", 200),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("[:::::]", 403),
        ("127.0.0.1@evil.example", 403),
        ("", 403),
    ],
)
def test_names_that_strangers_point_here(url: str, host: str, status: int) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", host)
    connection.putheader("Origin", f"http://{host}")
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        (GENERATIONS, "application/json", 200),
        (GENERATIONS, "Application/JSON; charset=utf-8", 200),
        (GENERATIONS, "text/plain", 415),
        (GENERATIONS, "multipart/form-data; boundary=a", 415),
        (GENERATIONS, "application/x-www-form-urlencoded", 415),
        (GENERATIONS, None, 415),
        ("/v1/images/edits", "application/json", 400),
    ],
)
def test_content_types(client: TestClient, path: str, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(path, content=json.dumps(ASKED), headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert error(answer)["param"] == "Content-Type"


def test_large_bodies_are_not_read(url: str, engine: Engine) -> None:
    """By the length they announce, or, in chunks without one, as soon as it is too much."""
    address = urlsplit(url)
    for chunked in (False, True):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        connection.putrequest("POST", GENERATIONS)
        connection.putheader("Content-Type", "application/json")
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        else:
            connection.putheader("Content-Length", "2001")
        connection.endheaders()
        if chunked:  # and no end
            for _ in range(3):
                connection.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"]["message"] == "the body is larger than 2000 bytes"
        connection.close()
    assert engine.stats().images_done == 0


def test_body_of_chunks(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": '
        yield b'"a"}'

    answer = client.post(GENERATIONS, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", [RuntimeError, OutputError])
def test_unexpected_errors_have_no_details(
    client: TestClient,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    def fail(*_: Any) -> None:
        raise kind("secret")

    monkeypatch.setattr(service.engine, "submit", fail)
    with caplog.at_level(logging.INFO, "jaxl.server"):
        answer = client.post(GENERATIONS, json=ASKED)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert error(answer)["type"] == "server_error"
    assert answer.headers["X-Request-Id"]
    assert "secret" in caplog.text


def test_requests_are_counted_and_logged(
    client: TestClient, service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []
    finish = caplog.handler.emit
    from jaxl.server import logs

    def keep(record: logging.LogRecord) -> None:
        lines.append(dict(logs._facts.get() or {}))
        finish(record)

    monkeypatch.setattr(caplog.handler, "emit", keep)
    with caplog.at_level(logging.INFO, "jaxl.server"):
        client.get("/health/live")
        client.post(GENERATIONS, json={"prompt": "a secret", "n": 2}, headers={"X-Request-Id": "mine"})
        client.get("/v1/models/tiny")
        client.get("/v1/unknown/path")
    assert [line["route"] for line in lines] == [GENERATIONS, "/v1/models/{model:path}", "other"]
    assert lines[0] == lines[0] | {"request_id": "mine", "status": 200, "images": 2, "size": "32x32"}
    assert "secret" not in str(lines)
    text = service.metrics.render().decode()
    assert f'jaxl:http_requests_total{{route="{GENERATIONS}",status="200"}} 1.0' in text
    assert 'jaxl:http_requests_total{route="other",status="404"} 1.0' in text


@pytest.mark.parametrize("row_seconds", [0.02])
def test_client_that_leaves_is_no_failure(
    url: str, service: Service, until: Callable[[Callable[[], bool]], None]
) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    body = json.dumps({"prompt": "a", "num_inference_steps": 1000})
    connection.request("POST", GENERATIONS, body, {"Content-Type": "application/json"})
    until(lambda: bool(service.live))
    connection.close()
    until(lambda: not service.live)
    until(lambda: f'route="{GENERATIONS}",status="499"' in service.metrics.render().decode())
