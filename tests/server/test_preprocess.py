"""Preprocessors over HTTP: the list, one picture alone, and with the controls of a request."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import jaxl
from jaxl.server.service import Service

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))


def encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_each_that_is_listed_makes_a_picture(client: TestClient) -> None:
    listed = client.get("/v1/preprocessors").json()["data"]
    assert {"canny", "invert", "inpaint"} <= {each["id"] for each in listed}
    for each in listed:
        usual = {one["name"]: one["default"] for one in each["parameters"]}
        mask = {"mask": encoded(Image.new("L", NOISE.size, 255))} if each["mask"] else {}
        body = {"image": encoded(NOISE), "name": each["id"], "resolution": 64, **usual, **mask}
        answer = client.post("/v1/preprocess", json=body)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["width"], answer.json()["height"]) == (96, 64)
        white = np.ones((32, 48), bool) if mask else None
        plain = jaxl.preprocess(each["id"], NOISE, resolution=64, mask=white)
        np.testing.assert_array_equal(opened(answer.json()["image"]), plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cany"}, "name='cany': no preprocessor of this server; did you mean 'canny'?"),
        ({"name": "hed"}, "name='hed': no preprocessor of this server"),
        ({"low": 300}, "low=300.0: give a whole number from 0 to 255"),
        ({"low": "much"}, "low: "),
        ({"sigma": 3}, "sigma=3.0: no parameter of canny; "),
        ({"resolution": 10**400}, "resolution="),
        ({"mask": encoded(NOISE.convert("L"))}, "takes none"),
        ({"image": "http://example.com/a.png"}, "URLs are not fetched"),
    ],
)
def test_what_is_refused(client: TestClient, fields: Any, message: str) -> None:
    answer = client.post("/v1/preprocess", json={"name": "canny", "image": encoded(NOISE), **fields})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_the_size_of_what_is_made_is_limited(client: TestClient, service: Service) -> None:
    service.settings = replace(service.settings, max_pixels=64 * 128)
    narrow = encoded(Image.new("RGB", (8, 1024)))
    for resolution, status in ((64, 400), (None, 200)):
        answer = client.post("/v1/preprocess", json={"name": "blur", "image": narrow, "resolution": resolution})
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("how", ["canny", {"name": "canny", "low": 50, "resolution": 64}])
def test_of_a_control(client: TestClient, asked: list[Mapping[str, Any]], how: Any) -> None:
    body = {"prompt": "a cat", "controls": [{"name": "edges", "image": encoded(NOISE), "preprocess": how}]}
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    (control,) = asked.pop()["controls"]
    given: dict[str, Any] = {"name": how} if isinstance(how, str) else how
    assert control.image == jaxl.preprocess(image=NOISE, **given)
    assert control.facts["preprocess"] == given
