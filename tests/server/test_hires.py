"""Second passes by each API: what reaches the pipeline, which sizes are drawn, and what files say of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.call.hires import Hires
from jaxl.call.infotext import read_a1111_text
from jaxl.engine.fake import FakeBackend
from jaxl.server.service import Service
from jaxl.server.settings import Settings

SIZES, LARGER = ((32, 32), (64, 32)), ((48, 48), (64, 64), (128, 64))
OPENAI, TXT2IMG = "/v1/images/generations", "/sdapi/v1/txt2img"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(size=SIZES[0], sizes_of_images=SIZES, larger=LARGER)


@pytest.fixture
def settings() -> Settings:
    return Settings(
        model="tiny", sizes=SIZES, larger_sizes=LARGER, upscalers=(("4x-UltraSharp", 4),), controlnets=("edges",)
    )


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def drawn(client: TestClient, path: str, **fields: Any) -> list[Image.Image]:
    answer = client.post(path, json={"prompt": "an apple", **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return [picture(data) for data in body.get("images") or [each["b64_json"] for each in body["data"]]]


def test_openai(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    own = {"scale": 1.5, "upscaler": "4x-UltraSharp", "steps": 3, "strength": 0.4, "prompt": "a tree"}
    own |= {"negative_prompt": "dark", "scheduler": "ddim", "guidance_scale": 2}
    (image,) = drawn(client, OPENAI, hires=own, num_inference_steps=4)
    assert asked[0]["hires"] == Hires(**own)
    assert image.size == (48, 48)
    settings = json.loads(image.info["jaxl"])
    assert (settings["hires"], settings["width"], settings["height"]) == (own, 32, 32)
    assert read_a1111_text(image.info["parameters"])["Hires upscaler"] == "4x-UltraSharp"
    again = client.post("/v1/images/settings", json={"image": base64.b64encode(file_of(image)).decode()}).json()
    assert (again["hires"], again["unread"]) == (own, [])


def file_of(image: Image.Image) -> bytes:
    return image.fp.getvalue()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def test_hugging_face(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    answer = client.post("/", json={"inputs": "an apple", "parameters": {"hires": {"size": [128, 64]}, "width": 64}})
    assert Image.open(io.BytesIO(answer.content)).size == (128, 64)
    assert asked[0]["hires"] == Hires(size=(128, 64))


def test_a1111(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    fields = {"hr_scale": 1.5, "hr_upscaler": "Latent (nearest-exact)", "hr_second_pass_steps": 3}
    fields |= {"hr_sampler_name": "DPM++ 2M", "hr_scheduler": "Use same scheduler", "hr_checkpoint_name": "tiny"}
    fields |= {"denoising_strength": 0.4, "hr_prompt": "a tree", "hr_negative_prompt": "dark", "hr_cfg": 2.0}
    answer = client.post(
        TXT2IMG, json={"prompt": "an apple", "enable_hr": True, "scheduler": "Karras", **fields}
    ).json()
    own = {"prompt": "a tree", "negative_prompt": "dark", "scheduler": "dpm++2m_karras", "guidance_scale": 2.0}
    upscaler = "Latent (nearest-exact)"
    assert asked[0]["hires"] == Hires(scale=1.5, upscaler=upscaler, steps=3, strength=0.4, **own)
    image, info = picture(answer["images"][0]), json.loads(answer["info"])
    assert (image.size, info["width"], info["denoising_strength"]) == ((48, 48), 32, 0.4)
    assert info["extra_generation_params"]["Hires upscaler"] == upscaler
    told = read_a1111_text(image.info["parameters"])
    wanted = {"Size": "32x32", "Hires upscale": "1.5", "Hires upscaler": upscaler, "Hires steps": "3"}
    wanted |= {"Denoising strength": "0.4", "Hires sampler": "DPM++ 2M", "Hires schedule type": "Karras"}
    wanted |= {"Hires prompt": "a tree", "Hires negative prompt": "dark", "Hires CFG Scale": "2"}
    assert told.items() >= wanted.items()


@pytest.mark.parametrize(
    ("fields", "hires"),
    [
        ({}, Hires(strength=0.75)),
        ({"hr_resize_x": 64, "hr_resize_y": 0, "hr_upscaler": None}, Hires(size=(64, 0), strength=0.75)),
        ({"hr_upscaler": "4x-UltraSharp", "denoising_strength": 0.3}, Hires(upscaler="4x-UltraSharp", strength=0.3)),
        (
            {"width": 64, "height": 64, "firstphase_width": 32, "firstphase_height": 32},
            Hires(size=(64, 64), strength=0.75),
        ),
    ],
    ids=["alone", "resize", "network", "first phase"],
)
def test_a1111_defaults(
    client: TestClient, asked: list[Mapping[str, Any]], fields: dict[str, Any], hires: Hires
) -> None:
    (image,) = drawn(client, TXT2IMG, enable_hr=True, hr_sampler_name="Use same sampler", **fields)
    assert (asked[0]["hires"], image.size) == (hires, (64, 64))


def test_controlnets_follow_in_both_passes(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    """The larger one, too, sees what their pictures have."""
    sent = io.BytesIO()
    Image.new("RGB", (200, 100)).save(sent, "PNG")
    unit = {"model": "edges", "image": base64.b64encode(sent.getvalue()).decode(), "hr_option": "Both"}
    scripts = {"controlnet": {"args": [unit]}}
    drawn(client, TXT2IMG, enable_hr=True, alwayson_scripts=scripts)
    assert asked[0]["controls"][0].image.size == (64, 64)
    unit["hr_option"] = "Low res only"
    drawn(client, TXT2IMG, alwayson_scripts=scripts)
    answer = client.post(TXT2IMG, json={"prompt": "an apple", "enable_hr": True, "alwayson_scripts": scripts})
    assert answer.json()["detail"].startswith("hr_option='Low res only': a ControlNet has a part in both passes")


def test_without_it_nothing_of_it_counts(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    (image,) = drawn(client, TXT2IMG, enable_hr=False, hr_scale=9.0, hr_upscaler="what", hr_checkpoint_name="other")
    assert ("hires" in asked[0], image.size) == (False, (32, 32))


def test_sizes_follow_the_policy(client: TestClient, asked: list[Mapping[str, Any]], service: Service) -> None:
    """A1111's routes scale what is nearest; the others say what there is, unless they are told."""
    (image,) = drawn(client, TXT2IMG, enable_hr=True, hr_scale=3.0)
    assert (asked[-1]["hires"].size, image.size) == ((64, 64), (96, 96))
    assert json.loads(image.info["jaxl"])["resized_to"] == "96x96"
    (image,) = drawn(client, TXT2IMG, enable_hr=True, hr_scale=2.0, width=40, height=40)
    assert (asked[-1]["width"], asked[-1]["hires"].scale, image.size) == (32, 2.0, (80, 80))
    (image,) = drawn(client, OPENAI, hires={"scale": 1.25}, size_policy="nearest")
    assert (asked[-1]["hires"].size, image.size) == ((48, 48), (40, 40))
    answer = client.post(OPENAI, json={"prompt": "an apple", "hires": {"scale": 1.25}})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "hires='40x40': second passes go to 48x48, 64x64, 128x64 here"
    service.settings = replace(service.settings, larger_sizes=())
    answer = client.post(TXT2IMG, json={"prompt": "an apple", "enable_hr": True})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("enable_hr='64x64': there are none here")


@pytest.mark.parametrize(
    ("path", "fields", "start"),
    [
        (OPENAI, {"hires": {"scale": 99}}, "hires.scale"),
        (OPENAI, {"hires": {"strength": 0}}, "hires.strength"),
        (OPENAI, {"hires": {"size": [64]}}, "hires.size"),
        (OPENAI, {"hires": {"what": 1}}, "hires.what"),
        (OPENAI, {"hires": "1.5x"}, "hires"),
        (OPENAI, {"hires": {"prompt": "x" * 10_001}}, "hires.prompt"),
        (TXT2IMG, {"denoising_strength": 0}, "denoising_strength"),
        (TXT2IMG, {"hr_scale": 0.5}, "hr_scale"),
        (TXT2IMG, {"hr_resize_x": 13}, "hr_resize_x"),
        (TXT2IMG, {"hr_checkpoint_name": "other"}, "hr_checkpoint_name"),
        (TXT2IMG, {"hr_sampler_name": "DPM adaptive"}, "sampler_name"),
        (TXT2IMG, {"hr_prompt": "x" * 10_001}, "hr_prompt"),
        (TXT2IMG, {"hr_prompt": "<lora:a>" * 17}, "hr_prompt"),
        ("/sdapi/v1/img2img", {}, "enable_hr"),
    ],
)
def test_mistakes_name_the_field(client: TestClient, path: str, fields: dict[str, Any], start: str) -> None:
    enabled = {} if path == OPENAI else {"enable_hr": True}
    answer = client.post(path, json={"prompt": "an apple", **enabled, **fields})
    assert answer.status_code in (400, 404, 422)
    body = answer.json()
    assert (body.get("detail") or body["error"]["message"]).startswith(start)


def test_lists(client: TestClient) -> None:
    modes = [each["name"] for each in client.get("/sdapi/v1/latent-upscale-modes").json()]
    assert modes[:3] == ["Latent", "Latent (antialiased)", "Latent (bicubic)"]
    assert len(modes) == 6


def test_webuiapi(api: webuiapi.WebUIApi, asked: list[Mapping[str, Any]]) -> None:
    """https://pypi.org/project/webuiapi, as its documentation asks for a second pass, with names out of its lists."""
    (mode,) = [each for each in api.get_latent_upscale_modes() if each["name"] == "Latent (nearest-exact)"]
    result = api.txt2img(
        prompt="an apple",
        enable_hr=True,
        hr_scale=2,
        hr_upscaler=webuiapi.HiResUpscaler.Latent,
        hr_second_pass_steps=3,
        hr_resize_x=64,
        hr_resize_y=64,
        denoising_strength=0.4,
    )
    assert result.image.size == (64, 64)
    assert asked[0]["hires"] == Hires(size=(64, 64), upscaler="Latent", steps=3, strength=0.4)
    assert api.txt2img(prompt="an apple", enable_hr=True, hr_upscaler=mode["name"]).image.size == (1024, 1024)
    assert api.txt2img(prompt="an apple").image.size == (512, 512)
