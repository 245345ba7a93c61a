"""Pictures that are kept for a while: answers that point to them, and requests that outlive their client."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from jaxl.server.service import Service
from jaxl.server.settings import Settings

Until = Callable[[Callable[[], bool]], None]
GENERATIONS = "/v1/images/generations"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, aliases=("dall-e-3", "gpt-image-1"), api_keys=("secret",))


@pytest.fixture
def client(client: TestClient) -> TestClient:
    client.headers["Authorization"] = "Bearer secret"
    return client


def draw(client: TestClient, **asked: Any) -> dict[str, Any]:
    response = client.post(GENERATIONS, json={"prompt": "a", "size": "32x32", **asked})
    assert response.status_code == 200, response.text
    return response.json()


def test_openai_client_follows_the_url(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as theirs:
        how: dict[str, Any] = {"prompt": "a", "size": "32x32", "output_format": "jpeg"}
        first, second = theirs.images.generate(model="dall-e-3", n=2, **how).data
        assert (first.b64_json, second.b64_json) == (None, None)
        assert second.url.startswith(f"{url}/v1/images/files/")
        file = theirs._client.get(second.url, headers={"Authorization": ""})
        (known,) = theirs.images.generate(**how, extra_body=second.model_extra).data
    assert file.status_code == 200
    assert file.headers["Content-Type"] == "image/jpeg"
    assert file.headers["Cache-Control"] == "private, max-age=3600"
    assert file.headers["X-Content-Type-Options"] == "nosniff"
    assert file.content == base64.b64decode(known.b64_json)


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({}, "b64_json"),
        ({"model": "tiny"}, "b64_json"),
        ({"response_format": "url"}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
    ],
)
def test_who_gets_urls(client: TestClient, asked: dict[str, Any], key: str) -> None:
    assert set(draw(client, **asked)["data"][0]) == {key, "seed"}


def test_url_is_that_of_the_proxy(client: TestClient) -> None:
    headers = {"Host": "pictures.example:8443"}
    answer = client.post(GENERATIONS, json={"prompt": "a", "response_format": "url"}, headers=headers).json()
    assert answer["data"][0]["url"].startswith("http://pictures.example:8443/v1/images/files/")


class TestBelowARootPath:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, root_path="/draw")

    @pytest.mark.parametrize("sent", ["", "/draw"])
    def test_url(self, client: TestClient, sent: str) -> None:
        """Whether the proxy leaves the root in the path or not."""
        asked = {"prompt": "a", "response_format": "url"}
        url = client.post(f"{sent}{GENERATIONS}", json=asked).json()["data"][0]["url"]
        assert url.startswith("http://testserver/draw/v1/images/files/")
        head, picture = (client.request(method, url.replace("/draw", sent)) for method in ("HEAD", "GET"))
        assert (head.status_code, picture.status_code, head.content) == (200, 200, b"")
        assert len(picture.content) == int(head.headers["Content-Length"])


def test_nobody_finds_a_picture_without_its_name(client: TestClient) -> None:
    for name in ("a.png", "..%2fsettings.py", "a" * 3000):
        answer = client.get(f"/v1/images/files/{name}", headers={"Authorization": ""})
        assert answer.status_code == 404
    assert client.get("/v1/images/files/a.png").json()["error"]["code"] == "picture_not_found"


def test_no_url_in_a_stream(client: TestClient) -> None:
    asked = {"prompt": "a", "stream": True}
    answer = client.post(GENERATIONS, json={**asked, "response_format": "url"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
    assert '"b64_json"' in client.post(GENERATIONS, json={**asked, "model": "dall-e-3"}).text


class TestWithoutUrls:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, urls=False)

    def test_nothing_is_kept(self, client: TestClient) -> None:
        for name, value in (("response_format", "url"), ("keep", True)):
            answer = client.post(GENERATIONS, json={"prompt": "a", name: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert "b64_json" in draw(client, model="dall-e-3")["data"][0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("row_seconds", [0.01])
def test_kept_request_outlives_its_client(url: str, service: Service, until: Until, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as theirs:

        def get(id: str) -> dict[str, Any]:
            return theirs.get(f"/requests/{id}", cast_to=dict[str, Any])

        asked: dict[str, Any] = {"num_inference_steps": 30, "seed": 5, "keep": True}
        headers = {"X-Request-Id": "mine"}
        if stream:
            with theirs.images.generate(prompt="a", n=2, stream=True, extra_body=asked, extra_headers=headers):
                pass
        else:
            with pytest.raises(openai.APITimeoutError):
                theirs.images.generate(prompt="a", n=2, extra_body=asked, extra_headers=headers, timeout=0.1)
        assert get("mine")["state"] in ("queued", "running")
        until(lambda: get("mine")["state"] == "done")
        known = get("mine")
        assert (known["images"], known["done"], known["error"]) == (2, 60, None)
        assert [(each["image"], each["seed"]) for each in known["pictures"]] == [(0, 5), (1, 6)]
        again = theirs.images.generate(prompt="a", n=2, extra_body=asked | {"keep": False})
        for each, own in zip(known["pictures"], again.data or [], strict=True):
            assert each["url"] == f"{url}/v1/images/files/{each['file']}"
            assert theirs._client.get(each["url"]).content == base64.b64decode(own.b64_json or "")
        assert service.engine.stats().requests_cancelled == 0
        assert theirs.delete("/requests/mine", cast_to=dict[str, Any])["cancelled"] is False
        assert theirs._client.get(known["pictures"][0]["url"]).status_code == 404
        with pytest.raises(openai.NotFoundError):
            get("mine")


def test_kept_pictures_are_those_of_the_answer(client: TestClient) -> None:
    """Encoded and kept once, though both point to them."""
    answer = client.post(
        GENERATIONS,
        json={"prompt": "a", "n": 2, "keep": True, "response_format": "url"},
        headers={"X-Request-Id": "mine"},
    )
    known = client.get("/v1/requests/mine").json()
    assert [each["url"] for each in known["pictures"]] == [each["url"] for each in answer.json()["data"]]
    draw(client)
    # another request of this id, which is not kept
    client.post(GENERATIONS, json={"prompt": "a"}, headers={"X-Request-Id": "mine"})
    assert client.get("/v1/requests/mine").status_code == 404


@pytest.mark.parametrize("row_seconds", [0.02])
def test_kept_request_tells_its_error(client: TestClient, service: Service, until: Until) -> None:
    asked = {"prompt": "a", "num_inference_steps": 1000, "keep": True}
    answers: list[Any] = []

    def work() -> None:
        answers.append(client.post(GENERATIONS, json=asked, headers={"X-Request-Id": "mine"}))

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: "mine" in service.live)
    assert client.delete("/v1/requests/mine").json()["cancelled"] is True
    thread.join()
    until(lambda: client.get("/v1/requests/mine").json()["state"] == "cancelled")
    known = client.get("/v1/requests/mine").json()
    assert (known["pictures"], known["error"]["code"]) == ([], "cancelled")
