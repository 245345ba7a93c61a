"""Edits as JSON, with pictures as data URLs, and variations."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


RED = Image.new("RGB", (64, 32), "red")
URL = data_url(RED)


@pytest.mark.parametrize(
    "pictures",
    [
        {"image": URL},
        {"image": [URL]},
        {"image": {"image_url": URL}, "images": None},
        {"images": [URL]},
        {"images": [{"image_url": URL}]},
        {"images": [{"type": "image_url", "image_url": {"url": URL}}]},
    ],
)
def test_pictures_in_json(client: TestClient, asked: list[Mapping[str, Any]], pictures: dict[str, Any]) -> None:
    answer = client.post(EDITS, json={"prompt": "a", "strength": 0.4, "n": 2, **pictures})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    assert answer.json()["size"] == "64x32"
    seen = asked[0]
    assert seen["image"].convert("RGB").tobytes() == RED.tobytes()
    assert (seen["prompt"], seen["strength"], seen["num_images"], "mask" in seen) == ("a", 0.4, 2, False)


@pytest.mark.parametrize("wrapped", [False, True])
def test_masks_in_json(client: TestClient, asked: list[Mapping[str, Any]], wrapped: bool) -> None:
    alpha = np.full((32, 64), 255, np.uint8)
    alpha[:, :20] = 0
    mask = Image.new("RGB", (64, 32))
    mask.putalpha(Image.fromarray(alpha))
    url = data_url(mask)
    body = {"prompt": "a", "images": [{"image_url": URL}], "mask": {"image_url": url} if wrapped else url}
    answer = client.post(EDITS, json=body).json()
    assert (np.asarray(asked[0]["mask"]) == 255 - alpha).all()
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))
    assert (drawn[:, 40:] == (255, 0, 0)).all(), "what is not painted stays as it is"


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({}, "image", "send one"),
        ({"images": []}, "image", "send one"),
        ({"image": URL, "images": [URL]}, "image", "send one"),
        ({"images": [{"file_id": "file-1"}]}, "images.0", "no files are kept here"),
        ({"images": [{"image_url": None}]}, "images.0", "string"),
        ({"image": 5}, "image.0", "string"),
        ({"image": "https://example.org/a.png"}, "image", "URLs are not fetched"),
        ({"images": [{"image_url": "http://169.254.169.254/"}]}, "image", "URLs are not fetched"),
        ({"image": URL, "mask": "https://example.org/a.png"}, "mask", "URLs are not fetched"),
        ({"image": URL, "mask": {"file_id": "file-1"}}, "mask", "no files are kept here"),
        ({"image": URL, "mask": URL}, "mask", "transparent"),
        ({"image": URL, "strength": 2}, "strength", "less than or equal to 1"),
        ({"image": URL, "prompt": None}, "prompt", "string"),
    ],
)
def test_mistakes_in_json(client: TestClient, fields: dict[str, Any], param: str, why: str) -> None:
    answer = client.post(EDITS, json={"prompt": "a", **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert why in error["message"]


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
def test_bodies_of_other_kinds_are_refused(client: TestClient, path: str) -> None:
    answer = client.post(path, content=b"a", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "send multipart/form-data" in answer.json()["error"]["message"]
    assert ("application/json" in answer.json()["error"]["message"]) is (path == EDITS)


def test_both_kinds_are_described(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    content = described["paths"][EDITS]["post"]["requestBody"]["content"]
    names = {kind: each["schema"]["$ref"].rpartition("/")[2] for kind, each in content.items()}
    assert set(names) == {"application/json", "multipart/form-data"}
    for name in names.values():
        assert {"prompt", "mask", "strength"} <= set(described["components"]["schemas"][name]["properties"])


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # as its client says
def test_variations(url: str, asked: list[Mapping[str, Any]]) -> None:
    image = RED.convert("RGBA")
    image.putalpha(128)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as theirs:
        answer = theirs.images.create_variation(image=png(image), n=2, response_format="b64_json", user="me")
        with pytest.raises(openai.BadRequestError) as raised:
            theirs.images.create_variation(image=b"no picture")
    assert raised.value.param == "image"
    assert [each.model_extra["seed"] for each in answer.data or [] if each.model_extra] == [
        asked[0]["seed"],
        asked[0]["seed"] + 1,
    ]
    assert (asked[0]["prompt"], asked[0]["image"].mode, "mask" in asked[0]) == ("", "RGB", False)
