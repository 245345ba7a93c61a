"""What can be fetched of the page, without a browser."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from jaxl.engine import Engine
from jaxl.engine.fake import FakeBackend
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.server.web.page import Page


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(model="<b>mine</b>", sizes=((32, 32),), schedulers=("euler",), ui=True)
    with Engine(FakeBackend(size=(32, 32))) as engine:
        yield TestClient(create_app(Service(engine, settings), Page(settings)))


@pytest.mark.parametrize("path", ["/", "/web/main.js", "/web/style.css", "/theme.css"])
def test_what_the_browser_needs(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_modules_are_scripts(client: TestClient) -> None:
    """Which browsers insist on, with nosniff."""
    assert client.get("/web/main.js").headers["Content-Type"].partition(";")[0].endswith("/javascript")


def test_names_are_texts(client: TestClient) -> None:
    page = client.get("/").text
    assert "<b>mine" not in page
    assert "mine" in page


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/web/../page.py"),
        ("GET", "/web/%2e%2e/page.py"),
        ("GET", "/web//etc/passwd"),
        ("GET", "/web/nothing.js"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/heartbeat/1"),
        ("GET", "/config"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/run/predict"),
        ("POST", "/web/main.js"),
        ("GET", "/assets/../../server.py"),
    ],
)
def test_nothing_else_is_there(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path, headers={"Content-Type": "application/json"})
    assert answer.status_code in (404, 405)


def test_routes_of_the_api_stay(client: TestClient) -> None:
    assert client.get("/v1/models").status_code == 200
    assert client.post("/", json={"inputs": "a"}).headers["Content-Type"] == "image/png"
