"""LoRAs in each API: how they are asked for, listed and refused, and what pictures' files say of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.engine import Engine, Lora
from jaxl.engine.fake import FakeBackend
from jaxl.server.limits import MOST_LORAS

OPENAI, A1111, HUGGING_FACE = "/v1/images/generations", "/sdapi/v1/txt2img", "/"
PENCIL = {"pencil": 0.8}
KNOWN = (
    Lora(
        "pencil",
        "pencil.safetensors",
        "sdxl_base_v1-0",
        ("pencil drawing",),
        {
            "ss_output_name": "last",
            "ss_tag_frequency": '{"10_pencil": {"pencil drawing": 12}}',
            "ss_network_args": '{"rate": NaN}',
            "deep": '{"a":' * 10_000,
            "half": "\ud83d",
            "ssmd_cover_images": "iVBORw0KGgo",
        },
    ),
    Lora("my ink, v2", "my ink, v2.safetensors"),
)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(size=(32, 32), sizes_of_images=((64, 32),), known=KNOWN)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    return stream.getvalue()


def texts_of(data: str) -> tuple[dict[str, Any], str]:
    """jaxl's settings in a picture's file, and A1111's."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return json.loads(image.info["jaxl"]), image.info["parameters"]


def test_every_way_to_ask(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    message = [{"role": "user", "content": "a cat"}]
    picture = base64.b64encode(png()).decode()
    form: dict[str, Any] = {"files": {"image": png()}, "data": {"prompt": "a cat", "loras": json.dumps(PENCIL)}}
    ways: list[tuple[str, dict[str, Any]]] = [
        (OPENAI, {"json": {"prompt": "a cat", "loras": PENCIL}}),
        ("/v1/images/edits", {"json": {"prompt": "a cat", "image": picture, "loras": PENCIL}}),
        ("/v1/images/edits", form),
        ("/v1/images/variations", form),
        ("/v1/chat/completions", {"json": {"messages": message, "loras": PENCIL}}),
        ("/v1/chat/completions", {"json": {"messages": message, "extra_body": {"loras": PENCIL}}}),
        ("/v1/responses", {"json": {"input": "a cat", "tools": [{"type": "image_generation", "loras": PENCIL}]}}),
        (HUGGING_FACE, {"json": {"inputs": "a cat", "parameters": {"loras": PENCIL}}}),
    ]
    for path, body in ways:
        response = client.post(path, **body)
        assert response.status_code == 200, (path, response.text)
        assert asked.pop()["loras"] == PENCIL, path


def test_none_is_none(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    for none in (None, {}):
        assert client.post(OPENAI, json={"prompt": "a cat", "loras": none}).status_code == 200
    form = {"prompt": "a cat", "loras": ""}
    assert client.post("/v1/images/edits", data=form, files={"image": png()}).status_code == 200
    assert ["loras" in each for each in asked] == [False] * 3


@pytest.mark.parametrize(
    ("loras", "param", "message"),
    [
        ({"pencil": 21}, "loras.pencil", "less than or equal to 20"),
        ({"pencil": "1"}, "loras.pencil", "valid number"),
        ({"pencil": None}, "loras.pencil", "valid number"),
        ({"pencil": True}, "loras.pencil", "valid number"),
        ({"x\n" * 5000: 1}, None, "at most 255 characters"),
        ({"\ud83d": 1}, None, "unicode"),
        (dict.fromkeys(map(str, range(MOST_LORAS + 1)), 1), "loras", f"at most {MOST_LORAS}"),
        (["pencil"], "loras", "valid dictionary"),
        ("<lora:pencil:1>", "loras", 'not JSON; give names with strengths, such as {"pencil": 0.8}'),
        ({"pensil": 1}, "loras", "'pensil': did you mean 'pencil'?"),
        ({"../pencil": 1}, "loras", "did you mean 'pencil'?"),
        ({"pencil.safetensors": 1}, "loras", "known: my ink, v2, pencil"),
    ],
)
def test_mistakes(client: TestClient, loras: Any, param: str | None, message: str) -> None:
    for path, body in (
        (OPENAI, {"prompt": "a", "loras": loras}),
        ("/", {"inputs": "a", "parameters": {"loras": loras}}),
    ):
        response = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert message in error["message"]
        assert "\n" not in error["message"]
        assert len(error["message"]) < 300
        if param is not None:
            assert error["param"] == (param if path == OPENAI else f"parameters.{param}")


def test_prompts_have_tags_where_there_is_syntax(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    tags = "".join(f"<lora:x{i}:1>" for i in range(MOST_LORAS + 1))
    response = client.post(A1111, json={"prompt": tags})
    assert response.status_code == 400
    assert response.json()["detail"].endswith(f": {MOST_LORAS + 1} LoRAs; give at most {MOST_LORAS}")
    response = client.post(A1111, json={"prompt": "a <lora:pencil:much>"})
    assert response.status_code == 400
    assert "has 'much' where a number belongs" in response.json()["detail"]
    assert asked == []
    assert client.post(OPENAI, json={"prompt": tags}).status_code == 200, "it is text there"


def test_lists(client: TestClient) -> None:
    assert client.get("/v1/loras").json() == {
        "object": "list",
        "data": [
            {"id": "pencil", "object": "lora", "base_model": "sdxl_base_v1-0", "trigger_words": ["pencil drawing"]},
            {"id": "my ink, v2", "object": "lora", "base_model": None, "trigger_words": []},
        ],
    }
    pencil, ink = client.get("/sdapi/v1/loras").json()
    assert ink == {"name": "my ink, v2", "alias": "my ink, v2", "path": "my ink, v2.safetensors", "metadata": {}}
    assert (pencil["name"], pencil["alias"], pencil["path"]) == ("pencil", "pencil", "pencil.safetensors")
    metadata = pencil["metadata"]
    assert metadata.pop("deep").startswith('{"a":{"a":')
    assert metadata == {
        "ss_output_name": "last",
        "ss_tag_frequency": {"10_pencil": {"pencil drawing": 12}},
        "ss_network_args": '{"rate": NaN}',
        "half": "\ud83d",
    }
    assert client.post("/sdapi/v1/refresh-loras").status_code == 200


def test_an_unloaded_model_has_none(client: TestClient, engine: Engine) -> None:
    assert engine.unload()
    assert client.get("/sdapi/v1/loras").json() == client.get("/v1/loras").json()["data"] == []


def test_files_name_them(client: TestClient) -> None:
    asked = {"prompt": "a cat", "seed": 3, "num_inference_steps": 2, "loras": {"pencil": -0.5, "my ink, v2": 1}}
    data = client.post(OPENAI, json=asked).json()["data"][0]["b64_json"]
    own, theirs = texts_of(data)
    assert own["loras"] == {"pencil": -0.5, "my ink, v2": 1}
    hashes = own["lora_hashes"]
    assert list(hashes) == ["pencil", "my ink, v2"]
    assert theirs.startswith("a cat <lora:pencil:-0.5> <lora:my ink, v2:1>\nSteps: 2, ")
    assert f'Lora hashes: "pencil: {hashes["pencil"]}, my ink, v2: {hashes["my ink, v2"]}", ' in theirs

    found = client.post("/v1/images/settings", json={"image": data}).json()
    assert (found["loras"], found["prompt"], found["unread"]) == (asked["loras"], "a cat", [])
    read = client.post("/sdapi/v1/png-info", json={"image": data}).json()["parameters"]
    assert read["Lora hashes"].startswith("pencil: ")


def test_a_file_of_a1111_keeps_its_tags(client: TestClient) -> None:
    from PIL.PngImagePlugin import PngInfo

    info, stream = PngInfo(), io.BytesIO()
    prompt = "a (cat:1.2) <lora:pencil:0.7:0.5>"
    line = 'Steps: 4, Sampler: Euler, Seed: 1, Size: 32x32, Lora hashes: "pencil: 0123456789ab", Version: v1.10.1'
    info.add_text("parameters", f"{prompt}\n{line}")
    Image.new("RGB", (32, 32)).save(stream, "PNG", pnginfo=info)
    data = base64.b64encode(stream.getvalue()).decode()
    found = client.post("/v1/images/settings", json={"image": data}).json()
    assert (found["prompt"], found["prompt_syntax"], found["unread"]) == (prompt, "lenient", [])


def test_what_a1111_says_of_a_picture(client: TestClient, monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    read = backend.read

    def with_tags(arguments: Mapping[str, Any]) -> Any:  # as the pipeline reads them
        return read({**arguments, "loras": {"pencil": 1.0}})

    monkeypatch.setattr(backend, "read", with_tags)
    answer = client.post(A1111, json={"prompt": "a cat <lora:pencil:1>", "steps": 2}).json()
    info = json.loads(answer["info"])
    assert info["prompt"] == "a cat <lora:pencil:1>"
    assert info["extra_generation_params"]["Lora hashes"].startswith("pencil: ")
    own, theirs = texts_of(answer["images"][0])
    assert "loras" not in own
    assert theirs == info["infotexts"][0]
    assert theirs.count("<lora:") == 1
