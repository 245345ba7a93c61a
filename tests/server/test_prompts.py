"""How each API reads prompts, and what is said of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.server.service import Service
from jaxl.text.prompt import SYNTAXES, parse, schedule
from jaxl.weights.inversions import Summary

OPENAI, A1111, HUGGING_FACE = "/v1/images/generations", "/sdapi/v1/txt2img", "/"
# what people write without a thought of syntax
PROMPTS = ("smile :)", "1) a castle", "(unclosed", "ROCK AND ROLL", "(a:1000)", "a\\")


def body(path: str, prompt: str, **options: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": options} if path == HUGGING_FACE else {"prompt": prompt, **options}


@pytest.mark.parametrize(("path", "own"), [(OPENAI, "literal"), (HUGGING_FACE, "literal"), (A1111, "lenient")])
def test_each_api_has_a_syntax_of_its_own(
    client: TestClient, asked: list[Mapping[str, Any]], path: str, own: Any
) -> None:
    for syntax in (None, *SYNTAXES):
        assert client.post(path, json=body(path, "smile :)", prompt_syntax=syntax)).status_code == 200
        assert asked[-1]["prompt_syntax"] == (syntax or own)
    for prompt in PROMPTS:
        assert client.post(path, json=body(path, prompt)).status_code == 200
        assert asked[-1]["prompt_syntax"] == own
        assert all(parse(text, syntax=own) for _, text in schedule(prompt, 9, syntax=own))
    refused = client.post(path, json=body(path, "a", prompt_syntax="comfy"))
    assert refused.status_code in (400, 422)
    assert "prompt_syntax" in refused.text


def test_the_file_says_how_its_prompt_was_read(client: TestClient) -> None:
    for path, syntax in ((OPENAI, "literal"), (A1111, "lenient")):
        answer = client.post(path, json=body(path, "smile :)", steps=2)).json()
        picture = answer["images"][0] if path == A1111 else answer["data"][0]["b64_json"]
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert json.loads(image.info["jaxl"])["prompt_syntax"] == syntax
        assert client.post("/v1/images/settings", json={"image": picture}).json()["prompt_syntax"] == syntax


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"negative_prompt": "cats AND dogs", "prompt_syntax": "lenient"}, "negative_prompt: AND is read as a word"),
        ({"negative_prompt": "cats AND dogs"}, None),
        ({"negative_prompt": "cat " * 90, "prompt_syntax": "plain"}, "negative_prompt: cut at 75 tokens"),
        ({"negative_prompt": "cat " * 90}, None),
    ],
)
def test_what_is_read_otherwise_is_told(client: TestClient, options: dict[str, Any], warning: str | None) -> None:
    answer = client.post(OPENAI, json=body(OPENAI, "a", **options))
    assert (answer.status_code, answer.headers.get("X-Jaxl-Warning")) == (200, warning)


@pytest.mark.parametrize(
    ("text", "syntax", "tokens", "chunks", "error"),
    [
        ("", "lenient", 0, 1, None),
        ("a red cat", "lenient", 3, 1, None),
        ("a (red:1.3) [cat:red cat:0.5]", "lenient", 4, 1, None),
        ("cat " * 80, "lenient", 80, 2, None),
        ("cat BREAK dog", "lenient", 2, 2, None),
        ("cat BREAK dog", "literal", 3, 1, None),
        ("cat " * 300, "literal", 300, 4, "a prompt may have 225 tokens here; shorten it"),
        ("smile :)", "lenient", 2, 1, None),
        ("smile :)", "a1111", 2, 1, "or give prompt_syntax='lenient'"),
        ("a <lora:x:1>", "lenient", 1, 1, None),
        ("a <lora:x:1>", "literal", 9, 1, None),
        ("a <lora:x:much>", "lenient", 9, 1, "has 'much' where a number belongs"),
        ("a <hypernet:x:1>", "lenient", 9, 1, "'<hypernet:x:1>' is for other networks"),
    ],
)
def test_tokens_are_counted(
    client: TestClient, text: str, syntax: str, tokens: int, chunks: int, error: str | None
) -> None:
    found = client.post("/v1/tokens", json={"text": text, "prompt_syntax": syntax}).json()
    told = found.pop("error")
    assert found == {"tokens": tokens, "chunks": chunks, "limit": 75 * chunks}
    assert told is None if error is None else error in told


@pytest.fixture
def embeddings(service: Service) -> None:
    """Textual inversions: one of three places, one without a hash, and one that was not loaded."""
    found = (
        Summary("EasyNegative", 3, 2048, "c74b4e810b03"),
        Summary("half", 1, 768),
        Summary("old", problem="a pickle"),
    )
    service.settings = replace(service.settings, embeddings=found)


@pytest.mark.usefixtures("embeddings")
@pytest.mark.parametrize(
    ("text", "syntax", "tokens", "error"),
    [
        ("a cat, easynegative", "lenient", 6, None),
        ("a cat, (embedding:EasyNegative:0.5)", "a1111", 6, None),
        ("a cat, easynegative", "literal", 5, None),
        ("easynegative", "literal", 2, None),
        ("embedding:old", "lenient", 4, "no embedding has this name"),
        ("easynegative " * 25, "lenient", 75, None),
    ],
)
def test_places_of_textual_inversions_are_counted(
    client: TestClient, text: str, syntax: str, tokens: int, error: str | None
) -> None:
    found = client.post("/v1/tokens", json={"text": text, "prompt_syntax": syntax}).json()
    assert (found["tokens"], found["chunks"]) == (tokens, 1)
    assert found["error"] is None if error is None else error in found["error"]


@pytest.mark.usefixtures("embeddings")
def test_files_say_which_textual_inversions_are_in_their_prompts(client: TestClient) -> None:
    def made(**options: Any) -> tuple[Any, str]:
        answer = client.post(A1111, json={"prompt": "a half [easynegative:cat:1]", "steps": 2, **options}).json()
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
            assert json.loads(answer["info"])["infotexts"] == [image.info["parameters"]]
            return json.loads(image.info["jaxl"]).get("embeddings"), image.info["parameters"]

    told, text = made()
    assert told == {"EasyNegative": "c74b4e810b03", "half": None}
    assert 'TI hashes: "EasyNegative: c74b4e810b03", ' in text
    assert made(prompt="a cat", negative_prompt="EASYNEGATIVE")[0] == {"EasyNegative": "c74b4e810b03"}
    assert made(prompt_syntax="literal")[0] is None
    assert "TI hashes" not in made(prompt="a cat")[1]


def test_texts_that_are_not_counted(client: TestClient) -> None:
    for text in ("a" * 10_001, "\ud800"):
        answer = client.post(
            "/v1/tokens", content=json.dumps({"text": text}), headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text")
    assert client.post("/v1/tokens", json={"text": "a"}).json()["tokens"] == 1
