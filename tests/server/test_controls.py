"""ControlNets in each API: how they are asked for, listed and refused, and what pictures' files say of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image

import jaxl
from jaxl.call.control import Control
from jaxl.server.service import Service

OPENAI, A1111 = "/v1/images/generations", "/sdapi/v1/txt2img"


def encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def png(width: int = 32, height: int = 32, colour: str = "red") -> str:
    return encoded(Image.new("RGB", (width, height), colour))


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data.partition("base64,")[2] or data)))


def asked_for(asked: list[Mapping[str, Any]]) -> list[Control]:
    return list(asked.pop()["controls"])


def texts_of(data: str) -> dict[str, Any]:
    return json.loads(opened(data).info["jaxl"])


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
        ({"module": "depth_midas"}, "module='depth_midas': no preprocessor of this server; "),
        ({"module": "inpaint_promax"}, "inpaint takes one, white where"),
        ({"resize_mode": "Stretch"}, "resize_mode='Stretch'"),
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


STRIPES = np.repeat(np.tile(np.array([0, 255], np.uint8), 8), 4)  # 64 pixels, each stripe four


def stripes() -> Image.Image:
    return Image.fromarray(np.tile(STRIPES, (64, 1))).convert("RGB")


def test_modules(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    """What a module makes is what the network follows, what comes after the image, and what the file tells."""
    fields = {
        "module": "canny",
        "image": encoded(stripes()),
        "processor_res": 64,
        "threshold_a": 30,
        "threshold_b": 999,
    }
    response = client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": {"controlnet": unit(**fields)}})
    assert response.status_code == 200, response.text
    drawn, shown = response.json()["images"]
    (control,) = asked_for(asked)
    edges = jaxl.preprocess("canny", stripes(), low=30).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(control.image, np.where(np.asarray(edges) > 127, 255, 0))
    np.testing.assert_array_equal(opened(shown), control.image)
    made = {"name": "canny", "resolution": 64, "low": 30, "high": 200}
    assert texts_of(drawn)["controls"] == [{**control.facts, "preprocess": made}]
    assert "Module: canny, Model: edges, Weight: 1.0" in opened(drawn).info["parameters"]


def test_maps_that_are_not_wanted(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    for fields in ({"module": "invert", "save_detected_map": False}, {"module": "none"}):
        response = client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": {"controlnet": unit(**fields)}})
        assert len(response.json()["images"]) == 1
    assert [asked_for(asked)[0].image.getpixel((0, 0)) for _ in "12"] == [(255, 0, 0), (0, 255, 255)]


def test_pixel_perfect(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    """The resolution at which the picture covers the image, or with bars fits into it."""
    wide = encoded(Image.new("RGB", (400, 100), "white"))
    for mode, resolution in (("Crop and Resize", 256), ("Resize and Fill", 64)):
        fields = {"module": "threshold", "pixel_perfect": True, "resize_mode": mode, "image": wide}
        body = {"prompt": "a cat", "width": 256, "height": 256, "alwayson_scripts": {"controlnet": unit(**fields)}}
        assert client.post(A1111, json=body).status_code == 200
        (control,) = asked_for(asked)
        assert control.told["preprocess"] == {"name": "threshold", "resolution": resolution, "threshold": 127.0}


def test_bars_have_the_middle_colour_of_the_border(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    framed = Image.new("RGB", (64, 32), (10, 20, 30))
    framed.paste((200, 200, 200), (4, 4, 60, 28))
    fields = {"image": encoded(framed), "resize_mode": 2}
    client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": {"controlnet": unit(**fields)}})
    (control,) = asked_for(asked)
    assert control.image.size == (32, 32)
    assert control.image.getpixel((16, 2)) == (10, 20, 30)
    assert control.image.getpixel((16, 16)) == (200, 200, 200)


def test_what_is_painted_anew_is_black(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    for image in ({"image": png(), "mask": encoded(mask)}, [png(), encoded(mask)]):
        fields = {"module": "inpaint_promax", "image": image}
        response = client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": {"controlnet": unit(**fields)}})
        assert response.status_code == 200, response.text
        (control,) = asked_for(asked)
        assert [control.image.getpixel((x, 16)) for x in (4, 28)] == [(0, 0, 0), (255, 0, 0)]


def test_webuiapi(url: str, service: Service, asked: list[Mapping[str, Any]]) -> None:
    """As its README does: a unit with a module, the lists, and a picture for the network alone."""
    service.settings = replace(service.settings, controlnets=("edges",))
    where = urlsplit(url)
    api: Any = webuiapi.WebUIApi(host=str(where.hostname), port=where.port or 0, steps=2)
    unit_of: Any = webuiapi.ControlNetUnit
    with api.session:
        module = unit_of(image=stripes(), module="canny", model="edges", pixel_perfect=True)
        # its default would keep the unit for the calls after this one
        result = api.txt2img(prompt="a cat", controlnet_units=[module], alwayson_scripts={})
        assert len(result.images) == 2
        assert asked_for(asked)[0].told["preprocess"] == {"name": "canny", "resolution": 512, "low": 64, "high": 64}
        assert api.controlnet_model_list() == ["edges"]
        assert "canny" in api.controlnet_module_list()
        assert api.controlnet_version() == 3
        detected = api.controlnet_detect(images=[stripes()], module="invert (from white bg & black line)")
        np.testing.assert_array_equal(detected.image, jaxl.preprocess("invert", stripes()))


def test_the_example_of_the_wiki(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    """Of https://github.com/Mikubill/sd-webui-controlnet/wiki/API, with a picture of its own."""
    body = {
        "prompt": "a cat",
        "negative_prompt": "",
        "batch_size": 1,
        "steps": 2,
        "cfg_scale": 7,
        "alwayson_scripts": {
            "controlnet": {"args": [{"enabled": True, "module": "canny", "model": "edges [d14c016b]"}]}
        },
    }
    body["alwayson_scripts"]["controlnet"]["args"][0]["image"] = encoded(stripes())
    response = client.post(A1111, json=body)
    assert response.status_code == 200, response.text
    assert len(response.json()["images"]) == 2
    assert asked_for(asked)[0].told["preprocess"] == {"name": "canny", "resolution": 512, "low": 100, "high": 200}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"controlnet_module": "canny"}, "give a picture"),
        ({"controlnet_module": "openpose", "controlnet_input_images": [png()]}, "module='openpose'"),
        ({"controlnet_module": "inpaint_promax", "controlnet_input_images": [png()]}, "takes one"),
        ({"controlnet_input_images": ["http://example.com/a.png"]}, "URLs are not fetched"),
    ],
)
def test_what_detect_refuses(client: TestClient, body: Any, message: str) -> None:
    response = client.post("/controlnet/detect", json=body)
    assert response.status_code in (400, 422)
    assert message in response.json()["detail"]


def test_image_prompts(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    prompts = [
        {"name": "like", "images": [png(), png(64, 32)], "strength": 0.7, "end": 0.5, "mask": png(), "blocks": "style"},
        {"name": "plain", "images": [png()]},
    ]
    response = client.post(OPENAI, json={"prompt": "a cat", "image_prompts": prompts})
    assert response.status_code == 200, response.text
    like, plain = asked.pop()["image_prompts"]
    assert [each.size for each in like.pictures] == [(32, 32), (64, 32)]
    assert (like.strength, like.end, like.mask.size, plain.strength) == (0.7, 0.5, (32, 32), 1.0)
    answer = response.json()["data"][0]["b64_json"]
    assert texts_of(answer)["image_prompts"] == [like.facts, plain.facts]
    restored = client.post("/v1/images/settings", json={"image": answer}).json()
    assert restored["image_prompts"] == [like.facts, plain.facts]
    unread = [line.partition(" read (")[0] for line in restored["unread"]]
    assert unread == ["the pictures that like", "the pictures that plain"]
    for wrong, message in (
        ({"images": []}, "images"),
        ({"images": ["http://example.com/a.png"]}, "URLs are not fetched"),
        ({"images": [png()], "blocks": "mood"}, "blocks"),
    ):
        response = client.post(OPENAI, json={"prompt": "a cat", "image_prompts": [{"name": "like", **wrong}]})
        assert response.status_code in (400, 422), response.text
        assert message in response.json()["error"]["message"]


def test_units_with_an_ip_adapter(client: TestClient, service: Service, asked: list[Mapping[str, Any]]) -> None:
    service.settings = replace(service.settings, controlnets=("edges",), ip_adapters=("like",))
    args = [*unit()["args"], {"model": "like", "module": "ip-adapter-auto", "image": png(64, 32), "weight": 0.6}]
    args += [{"model": "like [fef5e48e]", "image": png(), "effective_region_mask": png(colour="white")}]
    response = client.post(A1111, json={"prompt": "a cat", "alwayson_scripts": {"controlnet": {"args": args}}})
    assert response.status_code == 200, response.text
    given = asked.pop()
    assert [each.name for each in given["controls"]] == ["edges"]
    first, second = given["image_prompts"]
    assert (first.strength, first.images.size, second.mask.size) == (0.6, (64, 32), (32, 32))
    wrong = {"alwayson_scripts": {"controlnet": {"args": [{"model": "like", "module": "canny", "image": png()}]}}}
    response = client.post(A1111, json={"prompt": "a cat", **wrong})
    assert response.status_code == 422
    assert "like is an IP-Adapter" in response.text
    assert client.get("/controlnet/model_list").json() == {"model_list": ["edges", "like"]}
    assert "ip-adapter-auto" in client.get("/controlnet/module_list").json()["module_list"]
    types = client.get("/controlnet/control_types").json()["control_types"]
    assert types["IP-Adapter"]["default_model"] == "like"


def test_lists(client: TestClient, service: Service) -> None:
    service.settings = replace(service.settings, controlnets=("edges", "depth"))
    assert client.get("/controlnet/model_list").json() == {"model_list": ["edges", "depth"]}
    listed = client.get("/controlnet/module_list").json()
    assert {"none", "canny", "invert", "tile_resample", "blur_gaussian", "inpaint_promax"} <= {*listed["module_list"]}
    assert [each["name"] for each in listed["module_detail"]["canny"]["sliders"]] == [
        "Resolution",
        "Canny Low Threshold",
        "Canny High Threshold",
    ]
    named = client.get("/controlnet/module_list", params={"alias_names": True}).json()
    assert "invert (from white bg & black line)" in named["module_detail"]
    types = client.get("/controlnet/control_types").json()["control_types"]
    assert types["All"]["model_list"] == ["None", "edges", "depth"]
    assert (types["All"]["default_option"], types["All"]["default_model"]) == ("none", "None")
    assert types["Depth"] == {
        "module_list": ["none"],
        "model_list": ["None", "edges", "depth"],
        "default_option": "none",
        "default_model": "edges",
    }
    assert types["Canny"]["model_list"] == ["None", "edges"]
    assert types["Canny"]["default_option"] == "canny"
    assert client.get("/controlnet/version").json() == {"version": 3}
    assert client.get("/controlnet/settings").json()["control_net_unit_count"] > 1
