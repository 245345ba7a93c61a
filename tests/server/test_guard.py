"""What every request passes first: ids, keys, origins, hosts, content types, and bodies that are too large."""

import base64
import gzip
import http.client
import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from jaxl.engine import Engine
from jaxl.errors import OutputError
from jaxl.server import guard
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings

GENERATIONS = "/v1/images/generations"
ASKED = {"prompt": "a"}
PAGE = "https://pages.example"
APP = "tauri://localhost"


@pytest.fixture
def settings(settings: Settings, api_keys: tuple[str, ...]) -> Settings:
    return replace(settings, origins=(PAGE, APP), max_body=2000, api_keys=api_keys)


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
        (APP, 200),
        ("app://localhost", 403),
        ("https://evil.example", 403),
        ("https://pages.example.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ):
        headers = {} if origin is None else {"Origin": origin}
        answer = client.post(GENERATIONS, json=ASKED, headers=headers)
        assert answer.status_code == status, origin
        allowed = origin if origin in (PAGE, APP) else None
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


@KEYS
def test_preflight(client: TestClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    for origin in (PAGE, APP):
        answer = client.options(GENERATIONS, headers={"Origin": origin, **asked})
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert client.options(GENERATIONS, headers={"Origin": "https://evil.example", **asked}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST:8000", 200),
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


def test_without_a_host(url: str) -> None:
    """As HTTP/1.0 allows, and no browser does."""
    address = urlsplit(url)
    for more, status in ((b"", b"200"), (b"Origin: https://evil.example\r\n", b"403")):
        with socket.create_connection((address.hostname, address.port or 0)) as connection:
            connection.sendall(b"GET /v1/models HTTP/1.0\r\n" + more + b"\r\n")
            assert connection.makefile("rb").readline().split()[1] == status


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
        ("/v1/images/drawings", "text/plain", 404),
        ("/v1/models", "text/plain", 405),
    ],
)
def test_content_types(client: TestClient, path: str, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(path, content=json.dumps(ASKED), headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert error(answer)["param"] == "Content-Type"


@pytest.mark.parametrize(
    ("body", "coding", "status", "message"),
    [
        (gzip.compress(b'{"prompt": "a"}', mtime=0), "gzip", 415, "Content-Encoding is 'gzip'; send the body as it is"),
        (b'{"prompt": "a"}', "identity", 200, ""),
        (b"", "gzip", 400, "the body: "),
        ('{"prompt": "ä"}'.encode("latin-1"), "identity", 400, "the body is not UTF-8 (byte 0xe4 at 12)"),
        ('{"prompt": "ä"}'.encode("utf-8-sig"), "identity", 200, ""),
        ('{"prompt": "ä"}'.encode("utf-16"), "identity", 200, ""),
        (b'{"prompt": a}', "identity", 400, "the body is not JSON: Expecting value at character 11"),
        (b"[" * 1500, "identity", 400, "the body is n"),
    ],
)
def test_bodies_that_are_not_read(client: TestClient, body: bytes, coding: str, status: int, message: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = client.post(GENERATIONS, content=body, headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert error(answer)["message"].startswith(message)


def test_body_that_does_not_come(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.putrequest("POST", GENERATIONS)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "15")
    connection.endheaders(b'{"prompt"')
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Connection")) == (408, "close")
    assert json.loads(answer.read())["error"]["message"] == "the rest of the body did not come within 0.05 s"
    connection.close()


def test_unknown_routes_and_methods(client: TestClient) -> None:
    for method, path, status, message in (
        ("GET", "/v2/models", 404, "there is no such route; /openapi.json lists those there are"),
        ("GET", GENERATIONS, 405, "this method is not known here; send POST"),
        ("DELETE", "/v1/models", 405, "this method is not known here; send GET"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, error(answer)["message"]) == (status, message)


def test_slashes(client: TestClient) -> None:
    """One at the end, or two in front, as clients make of an address with a slash, lose neither route nor body."""
    for path in (f"{GENERATIONS}/", f"/{GENERATIONS}"):
        assert client.post(f"http://testserver{path}", json=ASKED, follow_redirects=False).status_code == 200
    for path in ("/v1/models/", "//v1/models"):
        assert client.get(f"http://testserver{path}", follow_redirects=False).json()["object"] == "list"


@pytest.mark.parametrize("prefix", ["", "/jaxl"])
def test_below_a_root(engine: Engine, settings: Settings, prefix: str) -> None:
    """Behind a proxy, which strips the root from paths or does not; keys and bodies are checked all the same."""
    settings = replace(settings, root_path="/jaxl", api_keys=("one",))
    client = TestClient(create_app(Service(engine, settings)), headers={"Authorization": "Bearer one"})
    assert client.get(f"{prefix}/v1/models/").json()["object"] == "list"
    assert client.post(f"{prefix}{GENERATIONS}", json=ASKED).status_code == 200
    assert client.post(f"{prefix}{GENERATIONS}", content="a").status_code == 415
    assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/jaxl"}]
    del client.headers["Authorization"]
    assert client.get(f"{prefix}/health/ready").status_code == 200
    assert client.get(f"{prefix}/v1/models").status_code == 401


ROUTES_OF_GET = ("/", "/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/models/tiny", "/v1/stats")


@pytest.mark.parametrize("path", [*ROUTES_OF_GET, "/openapi.json", "/sdapi/v1/options", "/v1/requests/none", "/none"])
def test_head(url: str, path: str) -> None:
    """Of every route of GET, what GET says without the body."""
    with httpx.Client(base_url=url, headers={"X-Request-Id": "mine"}) as client:
        got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    changing = {"date", "content-length"}
    assert {each for each in head.headers.items() if each[0] not in changing} == {
        each for each in got.headers.items() if each[0] not in changing
    }


@pytest.mark.parametrize("row_seconds", [0.02])
def test_head_of_a_stream(url: str, service: Service, until: Callable[[Callable[[], bool]], None]) -> None:
    """It does not wait for the end, and cancels nothing."""
    body = {"prompt": "a", "num_inference_steps": 1000, "stream": True}
    with (
        httpx.Client(base_url=url, headers={"X-Request-Id": "mine"}) as client,
        client.stream("POST", GENERATIONS, json=body),
    ):
        until(lambda: "mine" in service.live)
        assert httpx.head(f"{url}/v1/requests/mine/events").headers["Content-Type"].startswith("text/event-stream")
        assert "mine" in service.live


def test_address_alone(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.json()["OpenAI"] == GENERATIONS


def test_large_bodies_are_not_read(url: str, engine: Engine) -> None:
    """By the length they announce, or, in chunks without one, as soon as it is too much."""
    address = urlsplit(url)
    for chunked in (False, True):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=600)
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
