"""Hugging Face's inference API: its own client, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from jaxl.png import read_settings
from jaxl.server.errors import ApiError
from jaxl.server.huggingface import accepted
from jaxl.server.settings import Settings

GREY = Image.new("RGB", (60, 30), (90, 120, 150))


def file_of(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


class TestInferenceClient:
    @pytest.fixture(autouse=True)
    def online(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(model="someone/tiny", sizes=((32, 32), (64, 32)), api_keys=("secret",))

    @pytest.mark.parametrize("path", ["", "/", "/models/someone/tiny"])
    def test_text_to_image(self, url: str, path: str, asked: list[Mapping[str, Any]]) -> None:
        client = InferenceClient(model=url + path, token="secret")
        how: dict[str, Any] = {"negative_prompt": "blurry", "num_inference_steps": 4, "guidance_scale": 6.5}
        picture = client.text_to_image("an apple", **how, width=64, height=32, seed=9, scheduler="ddim")
        assert (picture.size, picture.format) == ((64, 32), "PNG")
        assert asked == [
            {
                "prompt": "an apple",
                "negative_prompt": "blurry",
                "steps": 4,
                "guidance_scale": 6.5,
                "width": 64,
                "height": 32,
                "seed": 9,
                "scheduler": "ddim",
                "num_images": 1,
                "prompt_syntax": "literal",
            }
        ]
        again = client.text_to_image("an apple", **how, width=64, height=32, seed=9, scheduler="ddim")
        assert again.tobytes() == picture.tobytes()

    def test_image_to_image(self, url: str, asked: list[Mapping[str, Any]]) -> None:
        client = InferenceClient(model=url, token="secret")
        picture = client.image_to_image(file_of(GREY), "an apple", strength=0.5, num_inference_steps=4)
        assert picture.size == (64, 32)
        assert (asked[0]["prompt"], asked[0]["strength"]) == ("an apple", 0.5)
        assert asked[0]["image"].tobytes() == GREY.tobytes()
        size: Any = {"width": 32, "height": 32}
        assert client.image_to_image(file_of(GREY), "an apple", target_size=size).size == (32, 32)
        client.image_to_image(file_of(GREY), negative_prompt="blurry")
        assert (asked[2]["prompt"], asked[2]["image"].size) == ("", (60, 30))

    def test_errors_say_why(self, url: str) -> None:
        client = InferenceClient(model=url, token="secret")
        with pytest.raises(HfHubHTTPError, match=r"parameters\.width=512: this server draws 32x32, 64x32"):
            client.text_to_image("an apple", width=512, height=512)
        with pytest.raises(HfHubHTTPError, match="404"):
            InferenceClient(model=f"{url}/models/another", token="secret").text_to_image("an apple")
        with pytest.raises(HfHubHTTPError, match="401"):
            InferenceClient(model=url, token="guess").text_to_image("an apple")


def base64_of(picture: Image.Image) -> str:
    return base64.b64encode(file_of(picture)).decode()


def half(size: tuple[int, int] = (60, 30)) -> Image.Image:
    """A mask whose right half is white."""
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


@pytest.mark.parametrize(
    "places",
    [
        {"inputs": "picture", "parameters": {"prompt": "an apple", "mask_image": "mask"}},
        {"inputs": "an apple", "parameters": {"image": "picture", "mask_image": "mask"}},
        {"inputs": "an apple", "image": "picture", "mask_image": "mask"},
    ],
)
def test_a_mask(client: TestClient, asked: list[Mapping[str, Any]], places: dict[str, Any]) -> None:
    text = json.dumps(places).replace('"picture"', f'"{base64_of(GREY)}"').replace('"mask"', f'"{base64_of(half())}"')
    answer = client.post("/", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    drawn, given = Image.open(io.BytesIO(answer.content)).convert("RGB"), asked[0]
    assert (given["prompt"], given["image"].tobytes()) == ("an apple", GREY.tobytes())
    assert given["mask"].tobytes() == half().tobytes()
    assert drawn.size == (64, 32)
    assert drawn.crop((0, 0, 12, 32)).getcolors() == [(12 * 32, (90, 120, 150))]
    assert drawn.crop((52, 0, 64, 32)).getcolors() != [(12 * 32, (90, 120, 150))]


def test_a_picture_beside_the_prompt(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    parameters = {"image": base64_of(GREY), "strength": 0.5, "mask_image": ""}
    assert client.post("/", json={"inputs": "an apple", "parameters": parameters}).status_code == 200
    assert (asked[0]["prompt"], asked[0]["strength"], asked[0]["image"].size) == ("an apple", 0.5, (60, 30))
    assert "mask" not in asked[0]


@pytest.mark.parametrize(
    ("header", "format"),
    [
        ("*/*", "png"),
        ("image/*", "png"),
        ("image/jpeg", "jpeg"),
        ("image/webp, image/png;q=0.5", "webp"),
        ("text/html, image/jpeg;q=0.9, */*;q=0.8", "jpeg"),
        ("image/png;q=0, */*", "jpeg"),
        ("IMAGE/WEBP ; Q=0.1", "webp"),
    ],
)
def test_the_client_chooses_the_file(header: str, format: str, client: TestClient) -> None:
    assert accepted(header) == format
    answer = client.post("/", json={"inputs": "an apple"}, headers={"Accept": header})
    assert answer.headers["Content-Type"] == f"image/{format}"
    assert (Image.open(io.BytesIO(answer.content)).format or "").lower() == format


@pytest.mark.parametrize("header", ["application/json", "image/gif", "", "*/*;q=0", "image/png;q=much"])
def test_no_file_that_the_client_takes(header: str) -> None:
    with pytest.raises(ApiError, match="Accept is") as error:
        accepted(header)
    assert error.value.status_code == 406


def test_the_file_says_how_it_was_made(client: TestClient, tmp_path: Any) -> None:
    path = tmp_path / "apple.png"
    path.write_bytes(client.post("/", json={"inputs": "an apple", "parameters": {"seed": 3}}).content)
    told = read_settings(path)
    assert (told["prompt"], told["seed"], told["steps"], told["width"]) == ("an apple", 3, 25, 32)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": 3}, "inputs"),
        ({"inputs": "x" * 10**6}, "inputs"),
        ({"inputs": "an apple", "parameters": {"prompt": "a pear"}}, "inputs"),
        ({"inputs": "http://localhost/secret.png", "parameters": {"prompt": "a pear"}}, "inputs"),
        ({"inputs": base64.b64encode(file_of(GREY)[:80]).decode()}, "inputs"),
        ({"inputs": "an apple", "parameters": [1]}, "parameters"),
        ({"inputs": "an apple", "parameters": {"width": 1}}, "parameters.width"),
        ({"inputs": "an apple", "parameters": {"height": 100_000}}, "parameters.height"),
        ({"inputs": "an apple", "parameters": {"num_inference_steps": 0}}, "parameters.num_inference_steps"),
        ({"inputs": "an apple", "parameters": {"num_images_per_prompt": 4}}, "parameters.num_images_per_prompt"),
        ({"inputs": "an apple", "parameters": {"seed": -2}}, "parameters.seed"),
        ({"inputs": "an apple", "parameters": {"strength": 0.5}}, "parameters.strength"),
        ({"inputs": "an apple", "parameters": {"negative_prompt": "x" * 10_001}}, "parameters.negative_prompt"),
        ({"inputs": "an apple", "parameters": {"image": "no base64!"}}, "parameters.image"),
        ({"inputs": "an apple", "mask_image": base64_of(half())}, "mask_image"),
        ({"inputs": base64_of(GREY), "parameters": {"mask_image": base64_of(half((8, 8)))}}, "parameters.mask_image"),
        ({"inputs": base64_of(GREY), "parameters": {"mask_image": base64_of(GREY)}}, "parameters.mask_image"),
        ({"inputs": base64_of(GREY), "image": base64_of(GREY)}, "image"),
    ],
)
def test_refused(client: TestClient, body: dict[str, Any], param: str) -> None:
    answer = client.post("/models/tiny", json=body)
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"].startswith(param)


def test_null_and_unknown_fields_pass(client: TestClient) -> None:
    parameters = {"negative_prompt": None, "seed": None, "target_size": None, "num_images_per_prompt": 1, "other": {}}
    assert client.post("/", json={"inputs": "an apple", "parameters": parameters, "options": {}}).status_code == 200
    assert client.post("/", json={"inputs": "an apple", "parameters": None}).status_code == 200
