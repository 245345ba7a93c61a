"""ControlNets in each API: how they are asked for, listed and refused, and what pictures' files say of them."""

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

from jaxl.call.control import Control
from jaxl.server.service import Service

OPENAI, A1111 = "/v1/images/generations", "/sdapi/v1/txt2img"


def png(width: int = 32, height: int = 32, colour: str = "red") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def asked_for(asked: list[Mapping[str, Any]]) -> list[Control]:
    return list(asked.pop()["controls"])


def texts_of(data: str) -> dict[str, Any]:
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return json.loads(image.info["jaxl"])


def test_openai(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    fields = [
        {"name": "edges", "image": png(), "strength": 0.7, "end": 0.5},
        {"name": "depth", "image": f"data:image/png;base64,{png()}", "weighting": "prompt", "mode": "tile"},
    ]
    response = client.post(OPENAI, json={"prompt": "a cat", "controls": fields})
    assert response.status_code == 200, response.text
    edges, depth = asked_for(asked)
    assert (edges.name, edges.strength, edges.start, edges.end) == ("edges", 0.7, 0.0, 0.5)
    assert (depth.weighting, depth.image.size) == ("prompt", (32, 32))
    facts = texts_of(response.json()["data"][0]["b64_json"])["controls"]
    assert facts == [edges.facts, depth.facts]


def test_a_form(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    files = {"image": base64.b64decode(png())}
    data = {"prompt": "a cat", "controls": json.dumps([{"name": "edges", "image": png()}])}
    response = client.post("/v1/images/edits", files=files, data=data)
    assert response.status_code == 200, response.text
    assert [each.name for each in asked_for(asked)] == ["edges"]


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"name": "edges"}, "image"),
        ({"name": "edges", "image": "http://example.com/a.png"}, "URLs are not fetched"),
        ({"name": "edges", "image": png(), "start": 0.5, "end": 0.5}, "must lie below its end"),
        ({"name": "edges", "image": png(), "strength": -1}, "strength"),
        ({"name": "edges", "image": png(), "more": 1}, "more"),
    ],
)
def test_what_openai_refuses(client: TestClient, control: Any, message: str) -> None:
    response = client.post(OPENAI, json={"prompt": "a cat", "controls": [control]})
    assert response.status_code in (400, 422), response.text
    assert message in response.json()["error"]["message"]


def unit(**fields: Any) -> dict[str, Any]:
    """As the extension's wiki shows it."""
    return {"args": [{"enabled": True, "module": "none", "model": "edges [fef5e48e]", "image": png(64, 32), **fields}]}


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({}, {"strength": 1.0}),
        ({"weight": 0.5, "guidance_start": 0.2, "guidance_end": 0.8}, {"strength": 0.5, "start": 0.2, "end": 0.8}),
        ({"control_mode": 1, "resize_mode": 0}, {"weighting": "prompt"}),
        ({"control_mode": "ControlNet is more important", "pixel_perfect": True}, {"weighting": "control"}),
        ({"union_control_type": "OpenPose"}, {"mode": "OpenPose"}),
        ({"image": None, "input_image": png(), "guidance": 0.5, "lowvram": True}, {"end": 0.5}),
        ({"image": {"image": png(), "mask": None}, "resize_mode": "Scale to Fit (Inner Fit)"}, {}),
    ],
)
def test_a1111_units(client: TestClient, asked: list[Mapping[str, Any]], fields: Any, facts: dict[str, Any]) -> None:
    if "input_image" in fields:
        fields = {name: value for name, value in fields.items() if name != "image"}
    scripts = {"ControlNet": {"args": [{**unit()["args"][0], **fields}, {"enabled": False, "model": "x"}, None]}}
    response = client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": scripts})
    assert response.status_code == 200, response.text
    (control,) = asked_for(asked)
    assert control.facts.items() >= {"name": "edges", **facts}.items()
    assert control.image.size == (32, 32)


def test_a1111_follows_the_picture_that_it_starts_from(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    scripts = {"controlnet": unit(image=None)}
    body = {"prompt": "a cat", "init_images": [png(colour="blue")], "alwayson_scripts": scripts}
    response = client.post("/sdapi/v1/img2img", json=body)
    assert response.status_code == 200, response.text
    (control,) = asked_for(asked)
    assert control.image.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"module": "canny"}, "module='canny': there are no preprocessors"),
        ({"resize_mode": "Resize and Fill"}, "resize_mode='Resize and Fill'"),
        ({"control_mode": "Mine"}, "control_mode='Mine'"),
        ({"weight": "much"}, "unit 0"),
        ({"image": None}, "the unit has no picture to follow"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "must lie below its end"),
        ({"effective_region_mask": "aaaa"}, "effective_region_mask"),
        ({"union_control_type": "Smell"}, "mode='Smell'"),
    ],
)
def test_what_a1111_refuses(client: TestClient, fields: Any, message: str) -> None:
    response = client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": {"controlnet": unit(**fields)}})
    assert response.status_code in (400, 422), response.text
    assert message in response.text.replace('\\"', "")


def test_lists(client: TestClient, service: Service) -> None:
    service.settings = replace(service.settings, controlnets=("edges", "depth"))
    assert client.get("/controlnet/model_list").json() == {"model_list": ["edges", "depth"]}
    assert client.get("/controlnet/module_list").json()["module_list"] == ["none"]
    (every,) = client.get("/controlnet/control_types").json()["control_types"].values()
    assert every["model_list"] == ["None", "edges", "depth"]
    assert client.get("/controlnet/version").json() == {"version": 3}
    assert client.get("/controlnet/settings").json()["control_net_unit_count"] > 1
