"""The choice of a model by every API, where a server has several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jaxl.call.infotext import a1111_text
from jaxl.engine.backend import Served
from jaxl.engine.fake import FakeBackend

HASH = "abcdef0123" + "0" * 54
SERVED = (
    Served("tiny", "tiny", place="device", parts={"vae": 5, "a": 10}),
    Served("ink", "ink.safetensors", HASH, "device", {"vae": 5, "b": 10}, {"disk": 1, "host": 2}, 0.5),
    Served("oil", "oil.safetensors"),
)


@pytest.fixture(autouse=True)
def _several(backend: FakeBackend) -> None:
    backend.served = SERVED


def models(asked: list[Mapping[str, Any]]) -> list[str]:
    return [each["model"] for each in asked]


def test_openai(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny", "ink", "oil"]
    assert client.get("/v1/models/ink.safetensors").json()["root"] == "ink"
    for body in ({}, {"model": "oil"}, {"model": "ink"}):
        client.post("/v1/images/generations", json={"prompt": "a", **body}).raise_for_status()
    chat = {"model": "ink", "messages": [{"role": "user", "content": "a"}]}
    assert client.post("/v1/chat/completions", json=chat).json()["model"] == "ink"
    client.post("/v1/responses", json={"model": "oil", "input": "a"}).raise_for_status()
    assert models(asked) == ["tiny", "oil", "ink", "ink", "oil"]
    error = client.post("/v1/images/generations", json={"prompt": "a", "model": "inc"})
    assert error.status_code == 404
    assert error.json()["error"]["message"] == "model='inc': not here; did you mean 'ink'? known: ink, oil, tiny"


def test_hugging_face(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    client.post("/models/ink", json={"inputs": "a"}).raise_for_status()
    client.post("/", json={"inputs": "a"}).raise_for_status()
    assert models(asked) == ["ink", "tiny"]
    assert client.post("/models/none", json={"inputs": "a"}).status_code == 404


def test_a1111_by_title_name_and_hash(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    listed = client.get("/sdapi/v1/sd-models").json()
    assert listed[1] == {
        "title": "ink.safetensors [abcdef0123]",
        "model_name": "ink",
        "hash": "abcdef0123",
        "sha256": HASH,
        "filename": "ink.safetensors",
        "config": None,
    }
    ways = ("ink.safetensors [abcdef0123]", "ink", "ink.safetensors", "abcdef0123", HASH)
    for way in ways:
        body = {"prompt": "a", "steps": 2, "override_settings": {"sd_model_checkpoint": way}}
        client.post("/sdapi/v1/txt2img", json=body).raise_for_status()
    assert models(asked) == ["ink"] * len(ways)


def test_a1111_options_are_the_callers_own(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    def draw(headers: dict[str, str]) -> None:
        client.post("/sdapi/v1/txt2img", json={"prompt": "a", "steps": 2}, headers=headers).raise_for_status()

    me, other = {"authorization": "Bearer me"}, {"authorization": "Bearer other"}
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "ink"}, headers=me).status_code == 200
    draw(me)
    draw(other)
    assert models(asked) == ["ink", "tiny"]
    chosen = client.get("/sdapi/v1/options", headers=me).json()
    assert (chosen["sd_model_checkpoint"], chosen["sd_checkpoint_hash"]) == (SERVED[1].title, HASH)
    assert client.get("/sdapi/v1/options", headers=other).json()["sd_model_checkpoint"] == "tiny"
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "x"}, headers=me).status_code == 404


def test_a_picture_says_which_model_drew_it(client: TestClient) -> None:
    body = {"prompt": "a", "steps": 2, "override_settings": {"sd_model_checkpoint": "ink"}}
    info = client.post("/sdapi/v1/txt2img", json=body).json()
    assert '"sd_model_name": "ink"' in info["info"]
    image = info["images"][0]
    assert "Model: ink" in client.post("/sdapi/v1/png-info", json={"image": image}).json()["info"]
    settings = client.post("/v1/images/settings", json={"image": image}).json()
    assert (settings["model"], settings["unread"]) == ("ink", [])
    facts = {"prompt": "a", "steps": 1, "scheduler": "euler", "guidance_scale": 5, "seed": 1, "width": 8, "height": 8}
    assert "Model hash: abcdef0123, Model: ink" in a1111_text({**facts, "model": "ink", "model_hash": "abcdef0123"})


def test_metrics(client: TestClient) -> None:
    client.post("/v1/images/generations", json={"prompt": "a", "model": "ink", "n": 2}).raise_for_status()
    told = client.get("/metrics").text
    for line in (
        'jaxl:models{place="device"} 2.0',
        'jaxl:models{place="disk"} 1.0',
        'jaxl:model_bytes{place="device"} 25.0',
        'jaxl:model_swaps_total{model="ink",source="host"} 2.0',
        'jaxl:model_swap_seconds_total{model="ink"} 0.5',
        'jaxl:images_by_model_total{model="ink"} 2.0',
    ):
        assert line in told
