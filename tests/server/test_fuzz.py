"""Whatever is sent, the server neither breaks nor answers in a shape that clients cannot read."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import Case, GenerationMode, checks
from schemathesis.schemas import APIOperation

from jaxl.server.a1111.fields import LACKING
from jaxl.server.settings import Settings

EXAMPLES = 10
CHECKS = [checks.not_a_server_error, checks.content_type_conformance, checks.response_schema_conformance]
DRAWING = ("/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/", "/models/tiny")
JSON = {"Content-Type": "application/json"}
MEGABYTE = "x" * 2**20


def png(size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "PNG")
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, *more: bytes) -> bytes:
    """A small PNG file that says that it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + chunk(b"IEND", b"")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


PICTURE = base64_of(png())


def body_for(path: str, **more: Any) -> dict[str, Any]:
    """What this route draws, with more fields where this API has them."""
    if path.startswith("/sdapi/"):
        return {"prompt": "an apple", **({"init_images": [PICTURE]} if "img2img" in path else {}), **more}
    if path.startswith("/v1/"):
        return {"prompt": "an apple", **more}
    return {"inputs": "an apple", "parameters": more}


def line_of(path: str, answer: Any) -> str:
    """The line of an error, whose shape must be that of the API."""
    if path.startswith(("/sdapi/", "/controlnet/")):
        assert set(answer) == {"error", "detail", "body", "errors"}
        line = answer["detail"]
    else:
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        line = answer["error"]["message"]
    assert isinstance(line, str)
    assert line
    assert "\n" not in line
    assert len(line) < 1000
    return line


def refused(client: TestClient, path: str, body: dict[str, Any], status: tuple[int, ...] = (400, 422)) -> str:
    response = client.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code in status, response.text[:300]
    return line_of(path, response.json())


class TestSchema:
    """What schemathesis makes of the server's own description, by a real server."""

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    def test_all_routes(self, url: str, mode: GenerationMode) -> None:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        allowed = mode is GenerationMode.POSITIVE
        seen: dict[tuple[str, str], set[int]] = {}
        with requests.Session() as session:
            for operation in (found.ok() for found in schema.get_all_operations()):
                if not (allowed or [*operation.iter_parameters(), *operation.body]):
                    continue  # nothing can be wrong where nothing is sent
                cases = operation.as_strategy(generation_mode=mode)
                for plausible in (False, True)[: 1 + allowed]:
                    seen[operation.method, operation.path] = try_out(operation, cases, plausible, session)
        assert {("post", path) for path in ("/", "/sdapi/v1/txt2img", "/v1/images/generations")} <= set(seen)
        if allowed:
            undrawn = {path for (_, path), statuses in seen.items() if 200 not in statuses}
            # no request, job or picture is there to ask for, no settings are in made-up pictures, nothing loads models
            requests_there = {"/v1/requests/{id}", "/v1/requests/{id}/events"}
            requests_there |= {"/v1/jobs/{id}", "/v1/jobs/{id}/answer"}
            others = {"/v1/images/files/{name}", "/v1/images/settings", "/sdapi/v1/unload-checkpoint"}
            others |= {"/sdapi/v1/extra-batch-images"}  # each of whose pictures has to be one
            assert undrawn == requests_there | others


def try_out(operation: APIOperation, cases: Any, plausible: bool, session: requests.Session) -> set[int]:
    """Send a route what its description allows, or what it does not; the statuses of the answers."""
    statuses: set[int] = set()

    @hypothesis_settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Case) -> None:
        if plausible:
            make_plausible(case)
        response = case.call(session=session)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)
        assert response.headers["x-content-type-options"] == ["nosniff"]
        if response.status_code >= 400:
            line_of(operation.path, response.json())

    with suppress(Unsatisfiable):  # any name is one that a path may hold
        check()
    return statuses


def make_plausible(case: Case) -> None:
    """Put into a request what no generator guesses, so that the rest of it is looked at."""
    names = case.path_parameters or {}
    for name in {"model", "name"} & set(names):
        names[name] = "tiny"
    if not isinstance(case.body, dict):
        return
    for name in (*LACKING, "alwayson_scripts", "override_settings", "initial_noise_multiplier", "model", "loras"):
        case.body.pop(name, None)
    known: dict[str, Any] = {"width": 32, "height": 32, "size": "32x32", "image": PICTURE, "image[]": []}
    case.body |= {name: value for name, value in known.items() if name in case.body}
    for name in {"messages", "input"} & set(case.body):
        case.body = {name: [{"role": "user", "content": "an apple"}], "stream": case.body.get("stream", False)}
    if case.operation.path == "/sdapi/v1/img2img":
        case.body["init_images"] = [PICTURE]
    if case.operation.path == "/v1/preprocess":
        case.body = {"name": "invert", "image": PICTURE}
    if case.operation.path == "/controlnet/detect":
        case.body |= {"controlnet_module": "canny", "controlnet_input_images": [PICTURE]}
    if case.operation.path in ("/v1/images/edits", "/v1/images/variations"):
        in_json = case.media_type == "application/json"
        case.body["image"] = PICTURE if in_json else [png()]
        for name in ("images", "mask"):
            case.body.pop(name, None)


class TestHostile:
    """What people try by hand; the line names the field, as each API calls it."""

    @pytest.mark.parametrize("path", DRAWING)
    def test_texts(self, client: TestClient, path: str) -> None:
        name = "prompt" if path.startswith(("/v1/", "/sdapi/")) else "inputs"
        for value in (MEGABYTE, 3, ["an apple"], {"text": "an apple"}, True, "half a pair: \ud83d"):
            assert name in refused(client, path, {**body_for(path), name: value})
            assert "negative_prompt" in refused(client, path, body_for(path, negative_prompt=value))

    @pytest.mark.parametrize("path", DRAWING)
    def test_counts(self, client: TestClient, path: str) -> None:
        name = (
            "n" if path.startswith("/v1/") else "batch_size" if path.startswith("/sdapi/") else "num_images_per_prompt"
        )
        for value in (0, -1, 11, 10**9, 10**30, 1.5, "many", [4]):
            assert name in refused(client, path, body_for(path, **{name: value}))

    @pytest.mark.parametrize("path", DRAWING)
    def test_sizes(self, client: TestClient, path: str) -> None:
        for side in (1, 33, 100_000, 2**70, 0, -32):
            size = {"size": f"{side}x{side}"} if path.startswith("/v1/") else {"width": side, "height": side}
            assert next(iter(size)) in refused(client, path, body_for(path, **size))

    @pytest.mark.parametrize("path", DRAWING)
    def test_numbers(self, client: TestClient, path: str) -> None:
        name = "cfg_scale" if path.startswith("/sdapi/") else "guidance_scale"
        for number in ("1e999", "-1e999", "NaN", "1" + "0" * 400, '"nan"', "101", "{}"):
            text = json.dumps(body_for(path, **{name: "here"})).replace('"here"', number)
            response = client.post(path, content=text, headers=JSON)
            assert response.status_code == 400, number
            assert name in line_of(path, response.json())

    @pytest.mark.parametrize("path", [*DRAWING, "/sdapi/v1/options", "/sdapi/v1/png-info"])
    def test_what_is_no_object(self, client: TestClient, path: str) -> None:
        digits = b'{"prompt": ' + b"9" * 10_000 + b"}"
        for text in (b"", b"{", b"null", b"[]", b'"prompt"', b"\xff", b"[" * 100_000, digits):
            response = client.post(path, content=text, headers=JSON)
            assert response.status_code == 400, text[:20]
            assert line_of(path, response.json())

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (base64_of(bomb(50_000, 50_000)), "too many pixels"),
            (base64_of(bomb(2**31 - 1, 2**31 - 1)), "too many pixels"),
            (base64_of(bomb(4096, 4096)), "cut short"),
            (base64_of(bomb(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20 * 2**20))))), "damaged"),
            (base64_of(png()[:60]), "cut short"),
            (base64_of(b"GIF89a" + bytes(100)), "not a PNG, JPEG or WebP picture"),
            (base64_of(b"<svg/>"), "not a PNG, JPEG or WebP picture"),
            (PICTURE[:-1] + "!", "not base64"),
            ("data:image/png;base64,", "not a PNG, JPEG or WebP picture"),
            ("data:image/png," + PICTURE, "begins with data:image/png;base64,"),
            ("http://169.254.169.254/latest/meta-data", "URLs are not fetched"),
            ("file:///etc/passwd", "URLs are not fetched"),
            ("/etc/passwd", "not"),
        ],
    )
    def test_pictures(self, client: TestClient, data: str, why: str) -> None:
        asked = {
            ("/sdapi/v1/img2img", "init_images"): {"init_images": [data]},
            ("/sdapi/v1/img2img", "mask"): {"init_images": [PICTURE], "mask": data},
            ("/sdapi/v1/png-info", "image"): {"image": data},
            ("/models/tiny", "inputs"): {"inputs": data, "parameters": {"prompt": "an apple"}},
        }
        for (path, name), body in asked.items():
            line = refused(client, path, body)
            assert line.startswith(f"{name}=")
            assert why in line

    def test_bombs_as_files(self, client: TestClient) -> None:
        for name in ("image", "mask"):
            files = {"image": png(), name: bomb(50_000, 50_000)}
            response = client.post("/v1/images/edits", data={"prompt": "an apple"}, files=files)
            assert response.status_code == 400
            assert line_of("/v1/", response.json()).startswith(f"{name}=")

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/images/generations", {"prompt": "an apple", "model": "dall-e-3"}),
            ("/sdapi/v1/txt2img", {"override_settings": {"sd_model_checkpoint": "dall-e-3"}}),
            ("/sdapi/v1/options", {"sd_model_checkpoint": "dall-e-3"}),
            ("/models/dall-e-3", {"inputs": "an apple"}),
            ("/models/../../etc/passwd", {"inputs": "an apple"}),
            ("/models/" + "x" * 5000, {"inputs": "an apple"}),
        ],
    )
    def test_unknown_models(self, client: TestClient, path: str, body: dict[str, Any]) -> None:
        assert refused(client, path, body, status=(404,))

    @pytest.mark.parametrize("path", ["/v1/nothing", "/sdapi/v1/interrogate", "/sdapi/v1/train/embedding"])
    def test_unknown_routes(self, client: TestClient, path: str) -> None:
        assert refused(client, path, {}, status=(404,))


class TestKeys:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(model="tiny", sizes=((32, 32),), api_keys=("secret",))

    @pytest.mark.parametrize("path", [*DRAWING, "/sdapi/v1/interrupt"])
    def test_wrong_keys(self, client: TestClient, path: str) -> None:
        for wrong in ("", "Bearer", "Bearer guess", "Basic c2VjcmV0", "Basic !", "Bearer secret secret"):
            response = client.post(path, json=body_for(path), headers={"Authorization": wrong})
            assert response.status_code == 401, wrong
            assert "Authorization" in line_of(path, response.json())
        assert client.post(path, json=body_for(path), headers={"Authorization": "Bearer secret"}).status_code == 200
