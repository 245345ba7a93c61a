"""Settings that are read from pictures again."""

import base64
import io
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxl.png import a1111_text

PATH = "/v1/images/settings"
MADE = {"prompt": "a castle", "seed": 2**64 - 1, "steps": 9, "scheduler": "ddim", "width": 64, "height": 32}


def png(**texts: str) -> str:
    info, stream = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=info)
    return base64.b64encode(stream.getvalue()).decode()


def test_what_the_server_drew(client: TestClient) -> None:
    asked = {"prompt": "a castle", "seed": 5, "num_inference_steps": 3, "negative_prompt": "rain", "scheduler": "ddim"}
    drawn = client.post("/v1/images/generations", json=asked).json()["data"][0]["b64_json"]
    found = client.post(PATH, json={"image": drawn}).json()
    assert {name: found[name] for name in ("prompt", "negative_prompt", "seed", "steps", "scheduler", "width")} == {
        "prompt": "a castle",
        "negative_prompt": "rain",
        "seed": "5",
        "steps": 3,
        "scheduler": "ddim",
        "width": 32,
    }


def test_every_digit_of_a_seed(client: TestClient) -> None:
    assert client.post(PATH, json={"image": png(jaxl=json.dumps(MADE))}).json() == {**MADE, "seed": str(2**64 - 1)}


def test_files_of_a1111(client: TestClient) -> None:
    text = a1111_text({**MADE, "negative_prompt": "rain", "guidance_scale": 4.5, "scheduler": "dpm++2m_karras"})
    found = client.post(PATH, json={"image": png(parameters=text)}).json()
    assert found == {
        **MADE,
        "negative_prompt": "rain",
        "guidance_scale": 4.5,
        "scheduler": "dpm++2m_karras",
        "seed": str(2**64 - 1),
    }


def test_what_cannot_be_read_is_left_out(client: TestClient) -> None:
    text = "a castle\nSteps: many, Sampler: Own sampler, CFG scale: inf, Seed: 1.5, Size: large"
    found = client.post(PATH, json={"image": png(parameters=text)}).json()
    assert found == {"prompt": "a castle", "negative_prompt": ""}


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (png(), "no settings"),
        (png(jaxl="{"), "damaged settings"),
        (png(jaxl="[]"), "damaged settings"),
        (png(jaxl='{"steps": 1e999}'), "1e999 is no JSON number"),
        (png(jaxl="{" * 100_000), "damaged settings"),
        (base64.b64encode(b"text").decode(), "not a PNG"),
        ("https://example.org/a.png", "URLs are not fetched"),
    ],
)
def test_mistakes(client: TestClient, image: str, word: str) -> None:
    answer = client.post(PATH, json={"image": image})
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    assert error["param"] == "image"
    assert word in error["message"]
