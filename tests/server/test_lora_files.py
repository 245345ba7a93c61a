"""LoRAs of a folder, drawn with over HTTP by the engine that users have: each picture is as if it were drawn alone."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from lora_files import write_lora
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxl.backend import PipelineBackend, RunningBatch, open_backend
from jaxl.engine import Engine
from jaxl.presets import PRESETS
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings

GENERATIONS, A1111 = "/v1/images/generations", "/sdapi/v1/txt2img"
A_WHILE = 600.0  # no measure of anything: only who fails waits so long
RANK = 32  # that the server has room for


@pytest.fixture(scope="module")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    model = small[0].model
    write_lora(folder / "pencil.safetensors", model, 1, 2)
    write_lora(folder / "ink.safetensors", model, 2, 4, ("unet",))
    write_lora(folder / "words.safetensors", model, 3, 4, ("text_encoder", "text_encoder_2"))
    write_lora(folder / "wide.safetensors", model, 4, 40)
    write_lora(folder / "fast-lcm.safetensors", model, 7, 2)
    (folder / "broken.safetensors").write_bytes(b"<html>not here</html>")
    return folder


@pytest.fixture(scope="module")
def backend(small: Any, folder: Path) -> PipelineBackend:
    """As `jaxl serve` opens it, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxl.backend.make_mesh", lambda *_: small[0].mesh)
        patch.setattr("jaxl.backend.spare_device", lambda: None)
        source = small[0].checkpoint.source
        return open_backend(source, lora_dir=folder, lora_rank=RANK, slots=3, chunks=1, dtype="float32")


@pytest.fixture(scope="module")
def engine(backend: PipelineBackend) -> Iterator[Engine]:
    with Engine(backend) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(backend: PipelineBackend, engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(Service(engine, Settings(**backend.defaults)))) as client:
        yield client


def drawn(client: TestClient, path: str, body: dict[str, Any]) -> bytes:
    """The pixels of the picture of a request."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    data = answer["images"][0] if path == A1111 else answer["data"][0]["b64_json"]
    return Image.open(io.BytesIO(base64.b64decode(data))).tobytes()


def some(rng: random.Random, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests with LoRAs of all kinds, by name and by tag, and without."""
    ways: list[tuple[str, dict[str, Any]]] = []
    for _ in range(count):
        body: dict[str, Any] = {"prompt": rng.choice(["a cat", "a dog"]), "seed": rng.randrange(2**32)}
        names = rng.sample(["pencil", "ink", "words"], rng.choice([0, 1, 1, 2]))
        loras = {name: rng.choice([-0.5, 0.7, 1.0]) for name in names}
        if rng.random() < 0.5:
            ways.append((GENERATIONS, {**body, "loras": loras, "num_inference_steps": rng.randint(2, 6)}))
        else:
            tags = "".join(f" <lora:{name}:{strength}:start=0.4>" for name, strength in loras.items())
            ways.append((A1111, {**body, "prompt": body["prompt"] + tags, "steps": rng.randint(2, 6)}))
    return ways


def test_a_picture_does_not_depend_on_its_neighbours(client: TestClient, compilations: Any) -> None:
    wanted = some(random.Random(2), 20)
    with compilations() as compiled, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda way: drawn(client, *way), wanted))
        alone = [drawn(client, *way) for way in wanted]
    assert together == alone
    assert len(set(alone)) == len(alone)
    assert compiled == []


def test_both_ways_to_ask_draw_the_same(client: TestClient) -> None:
    plain = {"prompt": "a cat", "seed": 3}
    by_name = drawn(client, GENERATIONS, {**plain, "num_inference_steps": 3, "loras": {"pencil": 0.8}})
    by_tag = drawn(client, A1111, {"prompt": "a cat<lora:pencil:0.8>", "seed": 3, "steps": 3})
    without = drawn(client, GENERATIONS, {**plain, "num_inference_steps": 3})
    assert by_name == by_tag != without


def test_a_file_is_replaced_while_it_is_drawn_with(
    client: TestClient, small: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "chalk.safetensors"
    write_lora(file, small[0].model, 5, 2)
    # the adapter begins after the file is replaced
    body = {"prompt": "a cat <lora:chalk:1:start=0.5>", "seed": 3, "steps": 4}
    before = drawn(client, A1111, body)
    advance, began, replaced = RunningBatch.advance, threading.Event(), threading.Event()

    def halting(batch: RunningBatch, rows: int) -> None:
        advance(batch, rows)
        began.set()
        assert replaced.wait(A_WHILE)

    monkeypatch.setattr(RunningBatch, "advance", halting)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(drawn, client, A1111, body)
        assert began.wait(A_WHILE)
        write_lora(file, small[0].model, 6, 4)
        replaced.set()
        assert running.result() == before
    after = drawn(client, A1111, body)
    assert after != before
    assert drawn(client, A1111, body) == after
    file.unlink()
    assert client.post(A1111, json=body).status_code == 400


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ({"broken": 1}, "loras='broken': broken.safetensors: an HTML page, not weights"),
        ({"wide": 1}, f"loras='rank 64': the ranks of an image's LoRAs may be {RANK} together here; leave some out"),
        ({"pencil": 1, "nobody": 1}, "loras='nobody': no LoRA of this name is loaded; known: broken, fast-lcm, ink"),
        ({"../loras/pencil": 1}, "no LoRA of this name is loaded; did you mean 'pencil'?"),
    ],
)
def test_mistakes_are_told_without_a_path(client: TestClient, folder: Path, loras: Any, message: str) -> None:
    tags = "".join(f"<lora:{name}:{strength}>" for name, strength in loras.items())
    for path, body in (
        (GENERATIONS, {"prompt": "a", "loras": loras}),
        ("/", {"inputs": "a", "parameters": {"loras": loras}}),
        (A1111, {"prompt": tags}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 400, response.text
        error = response.json()
        line = error["detail"] if path == A1111 else error["error"]["message"]
        if path == GENERATIONS:
            assert message in line
        assert str(folder) not in response.text
        assert folder.name + "/" not in line or "../" in line


def test_a_file_with_more_than_the_model_has(client: TestClient, backend: PipelineBackend, folder: Path) -> None:
    """Only who runs the server can have it taken in part."""
    file, more = folder / "more.safetensors", {"lora_unet_nowhere.lora_down.weight": np.ones((1, 1), np.float32)}
    save_file(load_file(folder / "pencil.safetensors") | more, file)
    response = client.post(GENERATIONS, json={"prompt": "a", "loras": {"more": 1}})
    message = response.json()["error"]["message"]
    assert message.endswith("; whoever runs the server can have such tensors left out, with --lora-partial")
    assert "strict" not in message
    file.unlink()


def test_lists(client: TestClient) -> None:
    found = client.get("/v1/loras").json()["data"]
    assert {each["id"]: each["trigger_words"] for each in found} == {
        "broken": [],
        **{name: [name] for name in ("fast-lcm", "ink", "pencil", "wide", "words")},
    }
    listed = client.get("/sdapi/v1/loras").json()
    assert [each["path"] for each in listed] == [f"{each['id']}.safetensors" for each in found]


def texts_of(data: str) -> tuple[dict[str, Any], str]:
    """jaxl's settings in a picture's file, and A1111's."""
    info = Image.open(io.BytesIO(base64.b64decode(data))).info
    return json.loads(info["jaxl"]), info["parameters"]


def test_the_file_has_digests(client: TestClient, backend: PipelineBackend) -> None:
    body = {"prompt": "a <lora:ink:1>", "seed": 1, "steps": 1}
    own, theirs = texts_of(client.post(A1111, json=body).json()["images"][0])
    assert own["lora_hashes"] == {"ink": backend.pipe.loras["ink"].digest}
    assert theirs.startswith("a <lora:ink:1>\n")
    assert f'Lora hashes: "ink: {own["lora_hashes"]["ink"]}"' in theirs


def test_the_file_says_what_a_distilled_one_has_changed(client: TestClient) -> None:
    body = {"prompt": "a", "seed": 1, "loras": {"fast-lcm": 1}}
    own, _ = texts_of(client.post(GENERATIONS, json=body).json()["data"][0]["b64_json"])
    preset = PRESETS["lcm"]
    assert (own["scheduler"], own["steps"]) == (preset.scheduler, preset.steps)
    assert own["guidance_scale"] == preset.guidance_scale
