"""Sizes that are asked for, and what is drawn for them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from jaxl.call.infotext import read_a1111_text
from jaxl.call.sizes import Size
from jaxl.errors import InputError
from jaxl.server import logs
from jaxl.server.settings import Settings
from jaxl.server.sizes import Policy, drawn_for, fitted, framed

USUAL = ((1024, 1024), (832, 1216), (1216, 832), (1344, 768))
GENERATIONS, EDITS, TXT2IMG, IMG2IMG = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
)


@pytest.mark.parametrize(
    ("wanted", "drawn"),
    [
        ((1024, 1024), (1024, 1024)),
        ((512, 512), (1024, 1024)),
        ((256, 256), (1024, 1024)),
        ((1792, 1024), (1344, 768)),
        ((1024, 1792), (832, 1216)),
        ((512, 768), (832, 1216)),
        ((1536, 1024), (1216, 832)),
    ],
)
def test_nearest(wanted: Size, drawn: Size) -> None:
    assert drawn_for(wanted, USUAL, "nearest") == drawn


def test_nearest_in_area_of_one_shape() -> None:
    sizes = ((256, 256), (1024, 1024), (512, 512))
    assert [drawn_for((side, side), sizes, "nearest") for side in (64, 400, 768, 2048)] == [
        (256, 256),
        (512, 512),
        (1024, 1024),
        (1024, 1024),
    ]


@pytest.mark.parametrize(
    ("wanted", "policy", "argument", "why"),
    [
        ((512, 512), "strict", "width", "this server draws 1024x1024, 832x1216"),
        ((1024, 512), "strict", "height", "ask for one of these"),
        ((500, 512), "nearest", "width", "multiple of 8"),
        ((512, 4), "nearest", "height", "multiple of 8"),
        ((0, 0), "nearest", "width", "multiple of 8"),
        ((2048, 2056), "nearest", "height", "at most 4194304 in all"),
        ((1600, 160), "nearest", "width", "a shape that is nearer"),
    ],
)
def test_what_is_refused(wanted: Size, policy: Policy, argument: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as raised:
        drawn_for(wanted, USUAL, policy)
    assert raised.value.argument == argument


def test_what_is_drawn_is_not_distorted() -> None:
    """A disc stays one, in the middle."""
    drawn = Image.new("RGB", (128, 64), "black")
    ImageDraw.Draw(drawn).ellipse((44, 12, 83, 51), fill="white")
    for wanted in ((32, 32), (128, 48), (256, 256)):
        picture = fitted(drawn, wanted)
        assert picture.size == wanted
        left, top, right, bottom = picture.convert("L").point([0] * 128 + [255] * 128).getbbox() or (0, 0, 0, 0)
        assert abs((right - left) - (bottom - top)) <= 2
        assert abs((right + left) - wanted[0]) <= 2


@pytest.mark.parametrize("wanted", [(64, 64), (128, 32), (32, 8), (256, 120), (128, 64)])
def test_what_is_drawn_from_a_picture_fits_it(wanted: Size) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (wanted[1] // 4, wanted[0] // 4, 3), np.uint8)
    picture = Image.fromarray(noise).resize(wanted, Image.Resampling.BICUBIC)
    start = framed(picture, wanted, (128, 64))
    assert start.size == (128, 64)
    back = fitted(start, wanted)
    difference = np.abs(np.asarray(back, float) - np.asarray(picture, float)).mean()
    assert difference < 12, "else it is shifted or stretched"
    mask = framed(Image.new("L", wanted, 255), wanted, (128, 64))
    assert np.asarray(mask).mean() / 255 == pytest.approx(
        min(wanted[0] / wanted[1] / 2, 2 * wanted[1] / wanted[0]), abs=0.02
    )


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, aliases=("dall-e-3",))


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def opened(data: str | bytes) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


def made(picture: Image.Image) -> dict[str, Any]:
    """The settings in a file, and what A1111 calls its sizes."""
    settings, told = json.loads(picture.info["jaxl"]), read_a1111_text(picture.info["parameters"])
    assert told["Size"] == f"{settings['width']}x{settings['height']}"
    assert told.get("Resized to") == settings.get("resized_to")
    return settings


class TestOpenai:
    """Nearest for whoever names an alias, or asks for it."""

    @pytest.mark.parametrize("more", [{"model": "dall-e-3", "response_format": "b64_json"}, {"size_policy": "nearest"}])
    def test_nearest(self, client: TestClient, asked: list[Mapping[str, Any]], more: dict[str, Any]) -> None:
        response = client.post(GENERATIONS, json={"prompt": "a", "size": "1792x1024", **more})
        assert response.status_code == 200, response.text
        assert response.headers["X-Jaxl-Drawn"] == "64x32"
        answer = response.json()
        assert (answer["size"], answer["drawn_size"]) == ("1792x1024", "64x32")
        picture = opened(answer["data"][0]["b64_json"])
        assert picture.size == (1792, 1024)
        assert (asked[0]["width"], asked[0]["height"]) == (64, 32)
        settings = made(picture)
        assert (settings["width"], settings["height"], settings["resized_to"]) == (64, 32, "1792x1024")

    @pytest.mark.parametrize("more", [{}, {"model": "tiny"}, {"model": "dall-e-3", "size_policy": "strict"}])
    def test_strict(self, client: TestClient, more: dict[str, Any]) -> None:
        answer = client.post(GENERATIONS, json={"prompt": "a", "size": "512x512", **more})
        assert answer.status_code == 400
        assert "this server draws 32x32, 64x32" in answer.json()["error"]["message"]

    def test_a_served_size_is_drawn_as_it_is(self, client: TestClient) -> None:
        response = client.post(GENERATIONS, json={"prompt": "a", "size": "64x32", "size_policy": "nearest"})
        assert response.headers["X-Jaxl-Drawn"] == response.json()["size"] == "64x32"
        assert "drawn_size" not in response.json()
        assert "resized_to" not in made(opened(response.json()["data"][0]["b64_json"]))

    def test_stream(self, client: TestClient) -> None:
        asked = {"prompt": "a", "size": "512x256", "size_policy": "nearest", "stream": True, "partial_images": 1}
        response = client.post(GENERATIONS, json=asked)
        assert response.headers["X-Jaxl-Drawn"] == "64x32"
        partial, last = (json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: "))
        assert opened(partial["b64_json"]).size == (8, 8), "previews are small, whatever is asked for"
        assert opened(last["b64_json"]).size == (512, 256)
        assert (last["size"], last["drawn_size"]) == ("512x256", "64x32")

    def test_edit_keeps_what_is_not_painted(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        image = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
        alpha = Image.new("L", (128, 128), 255)
        alpha.paste(0, (0, 0, 40, 128))
        image.putalpha(alpha)
        data = {"prompt": "a", "size": "128x96", "model": "dall-e-3", "response_format": "b64_json"}
        answer = client.post(EDITS, data=data, files={"image": png(image)})
        assert answer.status_code == 200, answer.text
        drawn = opened(answer.json()["data"][0]["b64_json"])
        assert drawn.size == (128, 96)
        kept = image.convert("RGB").resize((128, 96), Image.Resampling.LANCZOS)
        np.testing.assert_allclose(np.asarray(drawn)[:, 64:], np.asarray(kept)[:, 64:], atol=1)
        assert asked[0]["image"].size == asked[0]["mask"].size == (32, 32)


def test_log_and_metrics_have_the_size_drawn(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {}
    monkeypatch.setattr(logs, "note", lambda **more: facts.update(more))
    client.post(GENERATIONS, json={"prompt": "a", "n": 2, "size": "512x256", "size_policy": "nearest"})
    assert (facts["size"], facts["resized_to"]) == ("64x32", "512x256")
    assert 'jaxl:images_by_size_total{size="64x32"} 2.0' in client.get("/metrics").text


class TestA1111:
    """Nearest by default: its clients send 512x512 whatever there is."""

    def test_text(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        response = client.post(TXT2IMG, json={"prompt": "a", "width": 512, "height": 512})
        assert response.status_code == 200, response.text
        assert response.headers["X-Jaxl-Drawn"] == "32x32"
        assert (asked[0]["width"], asked[0]["height"]) == (32, 32)
        picture, info = opened(response.json()["images"][0]), json.loads(response.json()["info"])
        assert picture.size == (512, 512)
        assert made(picture)["resized_to"] == "512x512"
        assert (info["width"], info["height"]) == (32, 32)
        assert info["infotexts"] == [picture.info["parameters"]]
        assert info["extra_generation_params"]["Resized to"] == "512x512"

    @pytest.mark.parametrize("mode", [0, 1])
    @pytest.mark.parametrize("full", [False, True])
    def test_inpainting(self, client: TestClient, asked: list[Mapping[str, Any]], mode: int, full: bool) -> None:
        picture = Image.linear_gradient("L").resize((256, 160)).convert("RGB")
        mask = Image.new("L", picture.size, 0)
        mask.paste(255, (0, 0, 100, 160))
        body = {
            "init_images": [base64.b64encode(png(picture)).decode()],
            "mask": base64.b64encode(png(mask)).decode(),
            "mask_blur": 0,
            "resize_mode": mode,
            "inpaint_full_res": full,
            "width": 512,
            "height": 384,
        }
        response = client.post(IMG2IMG, json=body)
        assert response.status_code == 200, response.text
        drawn = opened(response.json()["images"][0])
        if full:
            assert asked[0]["image"].size == picture.size, "the pipeline cuts out what it draws"
            return
        assert drawn.size == (512, 384)
        box = (0, 0, 256, 160) if mode == 0 else (21, 0, 235, 160)
        kept = np.asarray(picture.resize((512, 384), Image.Resampling.LANCZOS, box=box), float)
        np.testing.assert_allclose(np.asarray(drawn, float)[:, 270:], kept[:, 270:], atol=3)
        assert asked[0]["image"].size == asked[0]["mask"].size == (32, 32)

    @pytest.mark.parametrize("policy", ["strict", "nearest"])
    def test_operator_decides(self, service: Any, client: TestClient, policy: Policy) -> None:
        service.settings = replace(service.settings, size_policy=policy)
        for path, body in (
            (TXT2IMG, {"prompt": "a", "width": 512, "height": 512}),
            (GENERATIONS, {"prompt": "a", "size": "512x512"}),
            (GENERATIONS, {"prompt": "a", "size": "512x512", "model": "dall-e-3"}),
            ("/", {"inputs": "a", "parameters": {"width": 512, "height": 512}}),
        ):
            assert client.post(path, json=body).status_code == (400 if policy == "strict" else 200)


def test_hugging_face(client: TestClient) -> None:
    body = {"inputs": "a", "parameters": {"width": 512, "height": 256}}
    assert client.post("/models/tiny", json=body).status_code == 400
    response = client.post("/models/dall-e-3", json=body)
    assert response.status_code == 200
    assert response.headers["X-Jaxl-Drawn"] == "64x32"
    assert opened(response.content).size == (512, 256)
    assert made(opened(response.content))["resized_to"] == "512x256"
