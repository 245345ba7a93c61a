"""Regions in the API: how they arrive, what is refused, and what pictures' files say of them."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.metadata.container import Texts
from jaxl.metadata.own import read

OPENAI = "/v1/images/generations"
stream = io.BytesIO()
Image.new("RGB", (32, 32), "white").save(stream, "PNG")
PICTURE = stream.getvalue()

HALVES = [
    {"prompt": "a cat", "box": [0, 0, 0.5, 1], "negative_prompt": "a dog", "strength": 0.8},
    {"prompt": "a llama", "mask": base64.b64encode(PICTURE).decode()},
]


def test_they_arrive_and_are_read_back(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    answer = client.post(OPENAI, json={"prompt": "two", "regions": HALVES})
    assert answer.status_code == 200, answer.text
    form = {"prompt": "two", "regions": json.dumps(HALVES[:1])}
    edited = client.post("/v1/images/edits", data=form, files={"image": PICTURE})
    assert edited.status_code == 200, edited.text
    cat, llama = asked[0]["regions"]
    assert (cat.prompt, cat.box, cat.negative_prompt, cat.strength) == ("a cat", [0, 0, 0.5, 1], "a dog", 0.8)
    assert (llama.mask.size, llama.box) == ((32, 32), None)
    assert [each.facts for each in asked[1]["regions"]] == [cat.facts]
    data = answer.json()["data"][0]["b64_json"]
    assert json.loads(Image.open(io.BytesIO(base64.b64decode(data))).info["jaxl"])["regions"] == [
        cat.facts,
        llama.facts,
    ]
    told = client.post("/v1/images/settings", json={"image": data}).json()
    assert told["regions"] == [cat.facts]
    assert "the region of a mask: a llama; give it as one of regions" in told["unread"]


def test_a_file_names_no_mask() -> None:
    told = [{"prompt": "a", "box": [0, 0, 1, 1], "mask": "secret.png"}, {"prompt": "b", "mask": "secret.png"}, 7]
    texts = Texts((8, 8))
    texts["jaxl"] = json.dumps({"prompt": "a", "regions": told})
    found = read(texts)
    assert found is not None
    assert [each.facts for each in found.arguments["regions"]] == [
        {"prompt": "a", "strength": 1.0, "box": [0, 0, 1, 1]}
    ]
    assert found.missing == (
        "the region of a mask: b; give it as one of `regions`",
        "a region without a prompt",
    )


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"prompt": "a"}, "give either a box or a mask"),
        ({"prompt": "a", "box": [0, 0, 1]}, "regions.0.box"),
        ({"prompt": "a", "box": [0, 0, 1, -1]}, "regions.0.box"),
        ({"prompt": "a" * 100_000, "box": [0, 0, 1, 1]}, "give at most"),
        ({"prompt": "a", "mask": "http://example.com/a.png"}, "URLs are not fetched"),
        ({"prompt": "a", "box": [0, 0, 1, 1], "more": 1}, "more"),
    ],
)
def test_what_is_refused(client: TestClient, region: Any, message: str) -> None:
    answer = client.post(OPENAI, json={"prompt": "a", "regions": [region]})
    assert answer.status_code == 400
    assert message in answer.text
