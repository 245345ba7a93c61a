"""Tiles by each API: what reaches the pipeline, and what files say of it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jaxl.call.infotext import read_a1111_text
from jaxl.call.tile_texts import take_tiles
from jaxl.server.a1111.tiled_diffusion import FORM, tiles_of

TXT2IMG = "/sdapi/v1/txt2img"
WANTED = {"tile_size": 1024, "tile_overlap": 128}


def form(**told: Any) -> dict[str, Any]:
    """What a client sends, with the form's own values where it says nothing."""
    args: list[Any] = [True, "MultiDiffusion", False, True, 1024, 1024, 128, 128, 16, 4, "None", 2, False, 10, 1, 1, 64]
    args += [False, False, False, False]
    for name, value in told.items():
        args[0 if name == "enabled" else FORM[name][0]] = value
    return {"prompt": "a cat", "alwayson_scripts": {"Tiled Diffusion": {"args": args}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a cat", **WANTED}),
        ("/models/tiny", {"inputs": "a cat", "parameters": WANTED}),
        (TXT2IMG, form()),
    ],
)
def test_it_arrives(client: TestClient, asked: list[Mapping[str, Any]], path: str, body: Mapping[str, Any]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert {name: asked[0].get(name) for name in WANTED} == WANTED
    if path == TXT2IMG:
        (text,) = json.loads(answer.json()["info"])["infotexts"]
        assert take_tiles(read_a1111_text(text)) == WANTED


def test_its_size_may_be_the_pictures() -> None:
    asked = form(overwrite_size=True, image_width=2048, image_height=1024)
    assert tiles_of(asked["alwayson_scripts"]) == {**WANTED, "width": 2048, "height": 1024}


def test_turned_off(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    assert client.post(TXT2IMG, json=form(enabled=False, noise_inverse=True)).status_code == 200
    assert "tile_size" not in asked[0]


@pytest.mark.parametrize(
    "told",
    [
        {"method": "Mixture of Diffusers"},
        {"noise_inverse": True},
        {"enable_bbox_control": True},
        {"upscaler_name": "4x-UltraSharp"},
        {"tile_height": 96},
        {"overlap": "much"},
        {"tile_width": -1},
    ],
    ids=lambda told: next(iter(told)),
)
def test_what_it_lacks_is_refused_by_name(client: TestClient, told: dict[str, Any]) -> None:
    (name,) = told
    answer = client.post(TXT2IMG, json=form(**told))
    assert answer.status_code == 422
    assert f"tiled diffusion, {name}={told[name]!r}: " in answer.json()["detail"]


@pytest.mark.parametrize(
    "text", ["[1]", "7", '{"Method": "MultiDiffusion"}', '{"Method": 1, "Tile tile width": []}', "{"]
)
def test_other_texts_are_left_alone(text: str) -> None:
    pairs = {"Tiled Diffusion": text}
    assert (take_tiles(pairs), pairs) == ({}, {"Tiled Diffusion": text})
