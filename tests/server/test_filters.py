"""The operator's filter: what it sees, and what becomes of a picture in each API."""

import base64
import importlib.metadata
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageOps

from jaxl.engine import Engine
from jaxl.errors import InputError
from jaxl.server import filters
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings

# says what its prompt says
FILTER = """
from PIL import ImageOps

seen = []

def look(picture, prompt):
    seen.append((picture.size, picture.mode, prompt))
    if prompt == "fail":
        raise ValueError("a secret of the filter's")
    if prompt == "change":
        return ImageOps.invert(picture)
    if prompt == "crop":
        return picture.crop((0, 0, 8, 8))
    return {"": "pass"}.get(prompt, prompt)

def strange(picture, prompt):
    return True

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(FILTER)
    return file


@pytest.fixture
def settings(settings: Settings, file: Path) -> Settings:
    return replace(settings, filter=f"{file}:look")


@pytest.fixture
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_what_passes_is_as_without_a_filter(client: TestClient, engine: Engine, settings: Settings) -> None:
    plain = TestClient(create_app(Service(engine, replace(settings, filter=None))))
    asked = {"prompt": "pass", "seed": 1, "n": 2}
    found = [each.post("/v1/images/generations", json=asked).json()["data"] for each in (client, plain)]
    assert found[0] == found[1]


def test_blur(client: TestClient, engine: Engine, settings: Settings) -> None:
    """Nobody can tell from the file what it was, or draw it from the settings in it."""
    plain = TestClient(create_app(Service(engine, replace(settings, filter=None))))
    sharp, blurred = (
        each.post("/v1/images/generations", json={"prompt": "blur", "seed": 1}).json()["data"][0]
        for each in (plain, client)
    )
    assert blurred["filtered"] == "blur"
    assert "filtered" not in sharp
    assert picture(blurred["b64_json"]).tobytes() == filters.blurred(picture(sharp["b64_json"])).tobytes()
    assert ["parameters" in picture(each["b64_json"]).info for each in (sharp, blurred)] == [True, False]


def test_another_picture(client: TestClient, engine: Engine, settings: Settings) -> None:
    """It leaves in place of the one that was drawn, whose settings it has."""
    plain = TestClient(create_app(Service(engine, replace(settings, filter=None))))
    drawn, changed = (
        picture(each.post("/v1/images/generations", json={"prompt": "change", "seed": 1}).json()["data"][0]["b64_json"])
        for each in (plain, client)
    )
    assert changed.convert("RGB") == ImageOps.invert(drawn.convert("RGB"))
    assert changed.info["parameters"] == drawn.info["parameters"]
    assert 'jaxl:filtered_total{verdict="change"} 1.0' in client.get("/metrics").text


ROUTES = {
    "/v1/images/generations": lambda prompt: {"prompt": prompt},
    "/v1/chat/completions": lambda prompt: {"messages": [{"role": "user", "content": prompt}]},
    "/v1/responses": lambda prompt: {"input": prompt},
    "/sdapi/v1/txt2img": lambda prompt: {"prompt": prompt},
    "/": lambda prompt: {"inputs": prompt},
}


@pytest.mark.parametrize("route", ROUTES)
def test_each_api_says_so(client: TestClient, route: str, caplog: pytest.LogCaptureFixture) -> None:
    assert client.post(route, json=ROUTES[route]("pass")).status_code == 200
    refused = client.post(route, json=ROUTES[route]("refuse"))
    assert refused.status_code == 400
    assert "this server's filter refused the picture" in refused.text
    for prompt in ("fail", "crop", "anything else"):
        with caplog.at_level(logging.ERROR):
            failed = client.post(route, json=ROUTES[route](prompt))
        assert failed.status_code == 500
        assert "this server's filter failed" in failed.text
        assert "secret" not in failed.text
        assert "the filter failed" in caplog.text


def test_streams_and_kept_requests(client: TestClient, until: Any) -> None:
    """Previews are of pictures that the filter has not seen: there are none."""
    asked = {"prompt": "pass", "stream": True, "partial_images": 2}
    assert "partial_image" not in client.post("/v1/images/generations", json=asked).text
    refused = client.post("/v1/images/generations", json={**asked, "prompt": "refuse"}).text
    assert "moderation_blocked" in refused
    assert "b64_json" not in refused
    headers = {"X-Request-Id": "mine"}
    client.post("/v1/images/generations", json={"prompt": "refuse", "keep": True}, headers=headers)
    until(lambda: client.get("/v1/requests/mine").json()["error"] is not None)
    kept = client.get("/v1/requests/mine").json()
    assert (kept["pictures"], kept["error"]["code"]) == ([], "moderation_blocked")
    text = client.get("/metrics").text
    assert 'jaxl:filtered_total{verdict="pass"} 1.0' in text
    assert 'jaxl:filtered_total{verdict="refuse"} 2.0' in text


def test_it_sees_what_leaves(client: TestClient, service: Service) -> None:
    """The picture in the size and with the parts that its client gets."""
    assert service.filter is not None
    seen: list[Any] = service.filter.look.__globals__["seen"]  # pyright: ignore[reportFunctionMemberAccess]
    seen.clear()
    client.post("/sdapi/v1/txt2img", json={"prompt": "pass", "width": 48, "height": 48})
    assert seen == [((48, 48), "RGB", "pass")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", "give module:function"),
        ("no.module:look", "ModuleNotFoundError"),
        ("json:nothing", "AttributeError"),
        ("{file}:number", "it cannot be called"),
        ("{file}:strange", "returned True, which is none of pass, blur, refuse"),
        ("{file}.py:look", "FileNotFoundError"),
        ("json:loads", "TypeError"),
    ],
)
def test_filters_that_do_not_work(file: Path, name: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        filters.load(name.format(file=file))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_entry_points(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine-1.dist-info").mkdir()
    (tmp_path / "mine-1.dist-info" / "entry_points.txt").write_text("[jaxl.filters]\nmine = mine:look\n")
    (tmp_path / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [each.name for each in importlib.metadata.entry_points(group=filters.GROUP)] == ["mine"]
    assert filters.load("mine").verdict(Image.new("RGB", (8, 8)), "blur") == "blur"
    with pytest.raises(InputError, match="did you mean 'mine'"):
        filters.load("mines")
