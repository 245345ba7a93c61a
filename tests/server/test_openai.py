"""OpenAI's images API, called by OpenAI's own client, and what it says to mistakes."""

import base64
import io
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.engine import Engine, Request
from jaxl.png import read_settings
from jaxl.server.service import Service
from jaxl.server.settings import Settings

Until = Callable[[Callable[[], bool]], None]

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
SLOW = pytest.mark.parametrize("row_seconds", [0.02])
LONG = {"prompt": "a", "num_inference_steps": 1000}


@pytest.fixture
def theirs(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def picture(data: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data or "")))


def read_text(image: Image.Image) -> dict[str, Any]:
    return json.loads(image.info["jaxl"])


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def alone(engine: Engine, **arguments: Any) -> list[Image.Image]:
    """What the engine draws without a server."""
    return engine.submit(Request({"prompt_syntax": "literal", **arguments})).future.result(600).images


def pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()


def test_client_gets_pictures(theirs: openai.OpenAI, engine: Engine, tmp_path: Any) -> None:
    extra = {"seed": 7, "negative_prompt": "dark", "num_inference_steps": 5, "guidance_scale": 3, "scheduler": "ddim"}
    answer = theirs.images.generate(model="tiny", prompt="a castle", n=2, size="64x32", extra_body=extra)
    assert answer.data is not None
    drawn = [picture(each.b64_json) for each in answer.data]
    asked = {"prompt": "a castle", "negative_prompt": "dark", "steps": 5, "guidance_scale": 3.0, "scheduler": "ddim"}
    own = alone(engine, **asked, width=64, height=32, seed=7, num_images=2)
    assert [pixels(each) for each in drawn] == [pixels(each) for each in own]
    assert [each.model_extra for each in answer.data] == [{"seed": 7}, {"seed": 8}]
    assert (answer.size, answer.output_format, answer.background) == ("64x32", "png", "opaque")
    (tmp_path / "b.png").write_bytes(base64.b64decode(answer.data[1].b64_json or ""))
    settings = read_settings(tmp_path / "b.png")
    assert settings | asked | {"seed": 8, "width": 64, "height": 32, "model": "tiny"} == settings


def test_random_seed_is_reported_and_draws_the_same_again(theirs: openai.OpenAI) -> None:
    first, second = (theirs.images.generate(prompt="a").data for _ in range(2))
    assert first
    assert second
    assert first[0].model_extra != second[0].model_extra
    again = theirs.images.generate(prompt="a", extra_body=first[0].model_extra).data
    assert again
    assert pixels(picture(again[0].b64_json)) == pixels(picture(first[0].b64_json))


def test_client_streams(theirs: openai.OpenAI, engine: Engine) -> None:
    events = list(
        theirs.images.generate(prompt="a", n=2, stream=True, partial_images=2, quality="low", extra_body={"seed": 1})
    )
    kinds = [event.type for event in events]
    assert kinds.count("image_generation.partial_image") == 4
    assert kinds.count("image_generation.completed") == 2
    for image in range(2):
        own = [event for event in events if event.model_extra == event.model_extra | {"image_index": image}]
        assert [event.partial_image_index for event in own if event.type != "image_generation.completed"] == [0, 1]
        assert own[-1].type == "image_generation.completed"
        assert own[-1].model_extra == {"image_index": image, "seed": 1 + image}
        for event in own:  # what the client's types promise
            type(event).model_validate(event.model_dump(), strict=True)
        partial = picture(own[0].b64_json)
        assert partial.format == "PNG"
        assert partial.size == (8, 8)
        last = alone(engine, prompt="a", seed=1 + image, width=32, height=32)[0]
        assert pixels(picture(own[-1].b64_json)) == pixels(last)


@SLOW
def test_progress(theirs: openai.OpenAI, until: Until, service: Service) -> None:
    """The place in the queue, again and again while others run, and then the steps."""
    with theirs.images.generate(prompt="others", n=10, stream=True, extra_body={"num_inference_steps": 60}):
        until(lambda: service.engine.stats().waiting == 6)
        extra = {"num_inference_steps": 3, "progress": True}
        events = list(theirs.images.generate(prompt="a", stream=True, extra_body=extra))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds[:2] == ["queued", "queued"]
    assert kinds[-2:] == ["progress", "completed"]
    assert events[0].position == 6
    assert 0 < events[1].starts_in < 10
    assert (events[-2].done, events[-2].total) == (3, 3)


@pytest.mark.parametrize(("format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(client: TestClient, format: str, kind: str) -> None:
    answer = client.post(GENERATIONS, json={"prompt": "a", "output_format": format}).json()
    assert answer["output_format"] == format
    assert picture(answer["data"][0]["b64_json"]).format == kind


def test_compression(client: TestClient) -> None:
    asked = {"prompt": "a", "seed": 1, "size": "64x32", "output_format": "jpeg"}
    sizes = [
        len(client.post(GENERATIONS, json={**asked, "output_compression": quality}).json()["data"][0]["b64_json"])
        for quality in (5, 95)
    ]
    assert sizes[0] < sizes[1]


def test_guidance_and_less_work_arrive(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    lists = {"freeu": [0.6, 0.4, 1.1, 1.2], "guidance_interval": [0.0, 0.5]}
    fields = {**lists, "pag_scale": 2.0, "cache_interval": 3, "step_interval": 2, "speed": "fast"}
    assert client.post(GENERATIONS, json={"prompt": "a", **fields}).status_code == 200
    form = {"prompt": "a", **{name: json.dumps(value) for name, value in lists.items()}}
    picture = png(Image.new("RGB", (64, 32)))
    assert client.post(EDITS, data=form, files={"image": ("a.png", picture, "image/png")}).status_code == 200
    assert asked[0] | fields == asked[0]
    assert asked[1] | lists == asked[1]
    answer = client.post(GENERATIONS, json={"prompt": "a", "freeu": [1.0]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "freeu")


def test_edit_paints_where_the_mask_is_transparent(theirs: openai.OpenAI, asked: list[Mapping[str, Any]]) -> None:
    image = Image.new("RGB", (64, 32), "red")
    alpha = np.full((32, 64), 255, np.uint8)
    alpha[:, :20] = 0
    mask = Image.new("RGB", (64, 32), "blue")
    mask.putalpha(Image.fromarray(alpha))
    answer = theirs.images.edit(
        image=("a.png", png(image), "image/png"),
        mask=png(mask),
        prompt="a",
        n=2,
        extra_body={"strength": 0.5, "seed": 4},
    )
    assert answer.size == "64x32"  # the server's size of that shape
    assert answer.data
    assert len(answer.data) == 2
    seen = asked[0]
    assert (seen["prompt"], seen["strength"], seen["seed"], seen["num_images"]) == ("a", 0.5, 4, 2)
    assert pixels(seen["image"]) == pixels(image)
    assert (np.asarray(seen["mask"]) == 255 - alpha).all()
    file = picture(answer.data[0].b64_json)
    assert b"compositeWithTrainedAlgorithmicMedia" in file.info["xmp"]
    drawn = np.asarray(file)
    assert (drawn[:, 40:] == (255, 0, 0)).all(), "what is not painted stays as it is"
    assert (drawn[:, :8] != (255, 0, 0)).any()


def test_edit_without_mask_takes_the_picture_own_transparency(
    client: TestClient, asked: list[Mapping[str, Any]]
) -> None:
    for alpha in (255, 0):
        data = png(Image.new("RGBA", (32, 32), (9, 9, 9, alpha)))
        assert client.post(EDITS, data={"prompt": "a"}, files={"image": data}).status_code == 200
    assert "mask" not in asked[0]
    assert asked[1]["mask"].getextrema() == (255, 255)


def test_mask_alone_with_a_soft_seam(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    mask = Image.new("RGBA", (32, 32), "black")
    mask.paste((0, 0, 0, 0), (8, 8, 16, 16))
    files = {"image": png(Image.new("RGB", (32, 32))), "mask": png(mask)}
    hard = Image.new("L", (32, 32))
    hard.paste(255, (8, 8, 16, 16))
    for form in ({}, {"padding_mask_crop": 4}, {"padding_mask_crop": 0, "mask_blur": 0}):
        assert client.post(EDITS, data={"prompt": "a", **form}, files=files).status_code == 200
    plain, soft, sharp = asked
    assert "padding_mask_crop" not in plain
    assert (soft["padding_mask_crop"], sharp["padding_mask_crop"]) == (4, 0)
    assert plain["mask"].tobytes() == sharp["mask"].tobytes() == hard.tobytes()
    # all that is painted is drawn anew, and goes over into the rest
    assert soft["mask"].crop((8, 8, 16, 16)).getextrema() == (255, 255)
    assert 0 < soft["mask"].getpixel((6, 12)) < 255
    for form in ({"padding_mask_crop": -1}, {"mask_blur": 257}):
        answer = client.post(EDITS, data={"prompt": "a", **form}, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(form)))


@pytest.mark.parametrize("blur", [0, 8])
def test_width_of_the_seam(client: TestClient, blur: int) -> None:
    """What is not painted stays, up to the seam."""
    white = Image.new("RGB", (32, 32), "white")
    mask = Image.new("RGBA", (32, 32), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    form = {"prompt": "a", "mask_blur": blur}
    answer = client.post(EDITS, data=form, files={"image": png(white), "mask": png(mask)})
    drawn = picture(answer.json()["data"][0]["b64_json"])
    assert (drawn.crop((16, 0, 32, 32)).getextrema() == ((255, 255),) * 3) == (blur == 0)


def test_client_streams_edits(theirs: openai.OpenAI) -> None:
    data = png(Image.new("RGB", (32, 32)))
    events = list(theirs.images.edit(image=[data], prompt="a", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert b"/trainedAlgorithmicMedia" in picture(events[-1].b64_json).info["xmp"]  # nothing of the picture stays
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)


def test_models(theirs: openai.OpenAI) -> None:
    assert [model.id for model in theirs.models.list()] == ["tiny"]
    assert theirs.models.retrieve("tiny").owned_by == "jaxl"
    for call in (
        lambda: theirs.models.retrieve("org/other"),
        lambda: theirs.images.generate(model="dall-e-2", prompt="a"),
        lambda: theirs.images.edit(model="dall-e-2", prompt="a", image=png(Image.new("RGB", (32, 32)))),
    ):
        with pytest.raises(openai.NotFoundError) as raised:
            call()
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


class TestAliases:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, aliases=("dall-e-3", "org/other"))

    def test_every_name_draws(self, theirs: openai.OpenAI, client: TestClient) -> None:
        assert [model.id for model in theirs.models.list()] == ["tiny", "dall-e-3", "org/other"]
        assert theirs.models.retrieve("org/other").model_extra == {"root": "tiny"}
        image = ("a.png", png(Image.new("RGB", (32, 32))), "image/png")
        for name in ("tiny", "dall-e-3", "org/other"):
            answer = theirs.images.generate(model=name, prompt="a", response_format="b64_json")
            assert read_text(picture((answer.data or [])[0].b64_json))["model"] == "tiny", "whatever it is called"
            assert theirs.images.edit(model=name, image=image, prompt="a").data
            assert client.post(f"/models/{name}", json={"inputs": "a"}).status_code == 200
            for checkpoint in (name, f"{name}.safetensors"):
                asked = {"prompt": "a", "override_settings": {"sd_model_checkpoint": checkpoint}}
                assert client.post("/sdapi/v1/txt2img", json=asked).status_code == 200
                assert client.post("/sdapi/v1/options", json=asked["override_settings"]).status_code == 200
        assert client.post("/models/dall-e-2", json={"inputs": "a"}).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"negative_prompt": "x" * 10_001}, "negative_prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"size": "1x1"}, "size"),
        ({"size": "100000x100000"}, "size"),
        ({"size": "large"}, "size"),
        ({"size": "32x64"}, "size"),
        ({"response_format": "url", "stream": True}, "response_format"),
        ({"response_format": "file"}, "response_format"),
        ({"background": "transparent"}, "background"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "gif"}, "output_format"),
        ({"partial_images": 4}, "partial_images"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"guidance_scale": 10**400}, "guidance_scale"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 2**64 - 1, "n": 2}, "seed"),
        ({"deadline": 0.9}, "deadline"),
        ({"deadline": 601}, "deadline"),
        ({"priority": 11}, "priority"),
    ],
)
def test_mistakes_name_the_field(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post(
        GENERATIONS, content=json.dumps({"prompt": "a", **fields}), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(param)
    assert len(error["message"]) < 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"prompt": "a", "seed": ' + b"9" * 5000])
def test_bodies_that_are_no_request(client: TestClient, body: bytes) -> None:
    answer = client.post(GENERATIONS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": None, "size": None, "seed": None, "priority": None, "user": "me"},
        {"style": "vivid", "quality": "hd", "size": "auto", "input_fidelity": "high", "partial_images": 0},
        {"style": "natural", "quality": "standard", "moderation": "low", "background": "opaque", "stream": False},
        dict.fromkeys(("model", "size", "style", "quality", "response_format", "user", "scheduler", "n", "seed"), ""),
        {"output_format": "", "background": "", "output_compression": 100},
    ],
)
def test_what_asks_for_nothing_is_let_pass(
    client: TestClient, asked: list[Mapping[str, Any]], neutral: dict[str, Any]
) -> None:
    answer = client.post(GENERATIONS, json={"prompt": "a", **neutral})
    assert answer.status_code == 200, answer.text
    image = png(Image.new("RGB", (32, 32)))
    form = {name: str(value).lower() for name, value in neutral.items() if value is not None}
    answer = client.post(EDITS, data={"prompt": "a", **form}, files={"image": image})
    assert answer.status_code == 200, answer.text
    assert set(asked[0]) == {"prompt", "prompt_syntax", "num_images", "seed", "width", "height"}


def test_seed_of_minus_one_is_random_everywhere(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    for path, body in (
        (GENERATIONS, {"prompt": "a", "seed": -1}),
        ("/", {"inputs": "a", "parameters": {"seed": -1}}),
        ("/sdapi/v1/txt2img", {"prompt": "a", "seed": -1}),
    ):
        for _ in range(2):
            assert client.post(path, json=body).status_code == 200
    assert len({each["seed"] for each in asked}) == 6
    assert min(each["seed"] for each in asked) >= 0


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ([], {"prompt": "a"}, "image"),
        ([("image", b"no picture")], {"prompt": "a"}, "image"),
        (
            [("image", png(Image.new("RGB", (4, 4)))), ("image", png(Image.new("RGB", (4, 4))))],
            {"prompt": "a"},
            "image",
        ),
        ([("image", png(Image.new("RGB", (4, 4)))), ("mask", png(Image.new("RGB", (4, 4))))], {"prompt": "a"}, "mask"),
        ([("image", png(Image.new("RGB", (4, 4)))), ("mask", b"")], {"prompt": "a"}, "mask"),
        ([("image", png(Image.new("1", (5000, 5000))))], {"prompt": "a"}, "image"),
        ([("image", png(Image.new("RGB", (4, 4))))], {}, "prompt"),
        ([("image", png(Image.new("RGB", (4, 4))))], {"prompt": ""}, "prompt"),
        ([("image", png(Image.new("RGB", (4, 4))))], {"prompt": "a", "strength": "2"}, "strength"),
        ([("image", png(Image.new("RGB", (4, 4))))], {"prompt": "a", "n": "x"}, "n"),
    ],
)
def test_mistakes_in_forms(client: TestClient, files: Any, data: dict[str, str], param: str) -> None:
    files = [(name, (f"{name}.png", content)) for name, content in files]
    files = files or [("other", ("a", b"b"))]
    answer = client.post(EDITS, data=data, files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_picture_that_is_a_text(client: TestClient) -> None:
    answer = client.post(EDITS, data={"prompt": "a", "image": "text"}, files={"mask": b"x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("image")


@SLOW
def test_full_queue(theirs: openai.OpenAI, service: Service, until: Until) -> None:
    with theirs.images.generate(n=10, stream=True, prompt="a", extra_body={"num_inference_steps": 1000}):
        until(lambda: service.engine.stats().running == 4)
        with pytest.raises(openai.RateLimitError) as raised:
            theirs.images.generate(prompt="b", n=3)
    assert int(raised.value.response.headers["Retry-After"]) >= 1
    assert raised.value.code == "rate_limit_exceeded"


@SLOW
def test_deadline(theirs: openai.OpenAI) -> None:
    extra = {"num_inference_steps": 1000, "deadline": 1}
    with theirs.images.generate(prompt="a", stream=True, extra_body=extra) as stream:
        with pytest.raises(openai.APIStatusError) as raised:
            theirs.images.generate(prompt="a", extra_body=extra)
        with pytest.raises(openai.APIError, match="not done within 1 s"):
            list(stream)
    assert (raised.value.status_code, raised.value.code) == (504, "deadline_exceeded")
    assert raised.value.response.headers["x-should-retry"] == "false"


@SLOW
@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_frees_the_place(url: str, engine: Engine, until: Until, stream: bool) -> None:
    address = urlsplit(url)
    body = json.dumps({**LONG, "stream": stream}).encode()
    with socket.create_connection((address.hostname, address.port)) as raw:
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: engine.stats().running == 1)
    until(lambda: engine.stats().requests_cancelled == 1)
    until(lambda: engine.stats().running == 0)


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("row_seconds", [0.1])  # no preview comes before the other follows
def test_status_and_events_of_a_request(
    theirs: openai.OpenAI, until: Until, service: Service, set_row_seconds: Callable[[float], None]
) -> None:
    """One client draws; another, which knows the id, follows."""
    answers: list[Any] = []
    asked = {"num_inference_steps": 200, "seed": 3, "previews": 4}

    def draw() -> None:
        headers = {"X-Request-Id": "mine-1"}
        answers.append(theirs.images.generate(prompt="a", n=2, extra_body=asked, extra_headers=headers))

    thread = threading.Thread(target=draw)
    thread.start()
    until(lambda: "mine-1" in service.live)
    status = theirs.get("/requests/mine-1", cast_to=dict[str, Any])
    assert status["id"] == "mine-1"
    assert status["state"] in ("queued", "running")
    assert status["total"] == 400
    follow = theirs._client.stream("GET", "/requests/mine-1/events")
    with follow as response:
        lines = response.iter_lines()
        first = next(lines)
        set_row_seconds(0.0)
        events = list(read_events(itertools.chain([first], lines)))
    thread.join()
    names = [name for name, _ in events]
    assert names[0] == "status"
    assert names[-1] == "done"
    assert names.count("preview") == 8
    assert names.count("drawn") == 2
    assert [data["done"] for name, data in events if name == "progress" and data["image"] == 1][-1] == 200
    assert events[-1][1]["seeds"] == [3, 4]
    shown = next(data for name, data in events if name == "preview")
    assert picture(shown["b64_json"]).format == "JPEG"
    assert answers[0].model_extra["id"] == "mine-1"
    with pytest.raises(openai.NotFoundError):
        theirs.get("/requests/mine-1", cast_to=dict[str, Any])


@SLOW
def test_cancel(theirs: openai.OpenAI, until: Until, service: Service) -> None:
    errors: list[openai.APIStatusError] = []

    def draw() -> None:
        with pytest.raises(openai.APIStatusError) as raised:
            theirs.images.generate(
                prompt="a", extra_body={"num_inference_steps": 1000}, extra_headers={"X-Request-Id": "mine-2"}
            )
        errors.append(raised.value)

    thread = threading.Thread(target=draw)
    thread.start()
    until(lambda: service.engine.stats().running == 1)
    with pytest.raises(openai.ConflictError):
        theirs.images.generate(prompt="b", extra_headers={"X-Request-Id": "mine-2"})
    assert theirs.delete("/requests/mine-2", cast_to=dict[str, Any])["cancelled"]
    thread.join()
    assert (errors[0].status_code, errors[0].code) == (499, "cancelled")
    until(lambda: service.engine.stats().running == 0)
