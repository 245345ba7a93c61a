"""Whether the server lives, whether it is ready, and its metrics."""

import threading
from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jaxl.engine import Engine
from jaxl.server.app import Front, create_app
from jaxl.server.service import Service


def test_ready(client: TestClient) -> None:
    for path, status in (("/health/live", "live"), ("/health/ready", "ready")):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": status})


def test_draining(client: TestClient, engine: Engine) -> None:
    assert engine.drain(1.0)
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
    assert client.get("/health/live").status_code == 200
    answer = client.post("/v1/images/generations", json={"prompt": "a"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "draining"
    assert int(answer.headers["Retry-After"]) >= 1


def test_stuck_devices(client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "stalled", lambda seconds: seconds < 1000)
    answer = client.get("/health/live")
    assert (answer.status_code, answer.json()) == (503, {"status": "stalled"})


def test_broken_devices(client: TestClient, engine: Engine, backend: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(backend, "batch", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    for _ in range(3):
        answer = client.post("/v1/images/generations", json={"prompt": "a"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_error"
    assert client.get("/health/live").status_code == 503
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "broken"})


def test_metrics(client: TestClient) -> None:
    client.post("/v1/images/generations", json={"prompt": "a"})
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'jaxl:request_success_total{finished_reason="done"} 1.0' in answer.text


def test_stats(client: TestClient) -> None:
    assert client.get("/v1/stats").json()["latency"] == {"p50": None, "p95": None, "requests": 0}
    client.post("/v1/images/generations", json={"prompt": "a", "n": 2})
    known = client.get("/v1/stats").json()
    assert (known["model"], known["images"], known["waiting"], known["latency"]["requests"]) == ("tiny", 2, 0, 1)
    assert known["latency"]["p50"] == known["latency"]["p95"] > 0
    assert (known["usd_per_hour"], known["usd_per_image"]) == (None, None)
    history = known["history"]
    assert history["images_per_second"][-1] * history["every"] == 2
    assert history["latency"][-1] == known["latency"]["p50"]


def test_cost_of_an_image(service: Service) -> None:
    priced = Service(service.engine, replace(service.settings, usd_per_hour=3.6))
    client = TestClient(create_app(priced))
    assert client.get("/v1/stats").json()["usd_per_image"] is None, "nothing was drawn yet"
    client.post("/v1/images/generations", json={"prompt": "a"})
    known = client.get("/v1/stats").json()
    assert known["usd_per_image"] == pytest.approx(0.001 / known["images_per_second"])


def test_page_before_the_model_is_there() -> None:
    answer = TestClient(Front(page=True)).get("/")
    assert answer.status_code == 503
    assert "being loaded" in answer.text
    assert TestClient(Front()).get("/").headers["Content-Type"] == "application/json"


def test_before_the_model_is_there() -> None:
    client = TestClient(Front())
    assert client.get("/health/live").status_code == 200
    answer = client.get("/health/ready", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
    assert answer.headers["X-Request-Id"] == "mine"
    answer = client.post("/v1/images/generations", json={"prompt": "a"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "loading"
    assert answer.headers["Retry-After"]


def test_after_the_model_is_there(app: FastAPI) -> None:
    front = Front()
    client = TestClient(front)
    assert client.get("/health/ready").status_code == 503
    front.open(app)
    assert client.get("/health/ready").status_code == 200
