"""Clients with their own defaults: what each sends in turn, and the pictures that it gets, in the size it asked for.

The server draws 32x32 and 64x32, and `--alias` has the names of OpenAI's models. Where the client is not here, its
requests are written down from its sources.
"""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import webuiapi
from fastapi.testclient import TestClient
from huggingface_hub import InferenceClient
from PIL import Image

from jaxl.server.settings import Settings

GENERATIONS, EDITS, TXT2IMG, IMG2IMG = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
)
# with brackets that no syntax of prompts has
PROMPT = "smile :), 1) a cat, (by the sea"


@pytest.fixture
def settings() -> Settings:
    return Settings(model="tiny", aliases=("dall-e-3", "dall-e-2"), sizes=((32, 32), (64, 32)))


def png(size: tuple[int, int] = (512, 512)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "PNG")
    return stream.getvalue()


def size_of(file: bytes | str) -> tuple[int, int]:
    data = base64.b64decode(file) if isinstance(file, str) else file
    return Image.open(io.BytesIO(data)).size


def posted(client: TestClient, path: str, **sent: Any) -> Any:
    answer = client.post(path, **sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def fetched(client: TestClient, answer: Any) -> tuple[int, int]:
    """The size of the one picture to which an answer points, fetched as from anywhere: without a key."""
    (image,) = answer["data"]
    file = client.get(urlsplit(image["url"]).path)
    assert file.headers["Content-Type"] == "image/png"
    return size_of(file.content)


def test_openai(url: str) -> None:
    """https://pypi.org/project/openai"""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        answer = client.images.generate(model="dall-e-3", prompt=PROMPT)
        assert answer.data is not None
        assert size_of(client._client.get(answer.data[0].url or "").content) == (32, 32)


def test_lang_chain(client: TestClient) -> None:
    """`DallEAPIWrapper` of langchain_community, whose default model is dall-e-2; it wants URLs."""
    answer = posted(client, GENERATIONS, json={"prompt": PROMPT, "n": 1, "size": "1024x1024", "model": "dall-e-2"})
    assert fetched(client, answer) == (1024, 1024)


def test_libre_chat(client: TestClient) -> None:
    """`DALLE3.js`: it names the picture's file by the end of its URL."""
    body = {"model": "dall-e-3", "quality": "standard", "style": "vivid", "size": "1792x1024", "n": 1}
    answer = posted(client, GENERATIONS, json={**body, "prompt": PROMPT})
    assert fetched(client, answer) == (1792, 1024)
    assert urlsplit(answer["data"][0]["url"]).path.endswith(".png")


def test_libre_chat_with_a1111(client: TestClient) -> None:
    """`StableDiffusion.js`"""
    body = {"prompt": PROMPT, "negative_prompt": "ugly", "cfg_scale": 4.5, "steps": 22, "width": 1024, "height": 1024}
    answer = posted(client, TXT2IMG, json=body)
    assert size_of(answer["images"][0].split(",", 1)[0]) == (1024, 1024)
    assert json.loads(answer["info"])["infotexts"][0].split("\n")[-1].startswith("Steps: 22")


def test_open_webui(client: TestClient) -> None:
    """Its engine `openai`: `images.py` posts a picture of a chat, and another to edit."""
    body = {"model": "dall-e-3", "prompt": PROMPT, "n": 1, "size": "512x512", "response_format": "b64_json"}
    assert size_of(posted(client, GENERATIONS, json=body)["data"][0]["b64_json"]) == (512, 512)
    form = {"model": "dall-e-2", "prompt": PROMPT, "n": "1", "size": "512x512", "response_format": "b64_json"}
    for name in ("image", "image[]"):
        files = {name: ("1f0e.png", png(), "image/png")}
        assert size_of(posted(client, EDITS, data=form, files=files)["data"][0]["b64_json"]) == (512, 512)


def test_open_webui_with_a1111(client: TestClient) -> None:
    """Its engine `automatic1111`: the check of the address, the list of models, the choice of one, and a picture."""
    client.headers["Authorization"] = ""
    assert client.get("/sdapi/v1/options").status_code == 200
    titles = [model["title"] for model in client.get("/sdapi/v1/sd-models").json()]
    options = client.get("/sdapi/v1/options").json() | {"sd_model_checkpoint": titles[0]}
    posted(client, "/sdapi/v1/options", json=options)
    body = {"prompt": PROMPT, "batch_size": 1, "width": 512, "height": 512, "steps": 50}
    answer = posted(client, TXT2IMG, json=body)
    assert [size_of(image) for image in answer["images"]] == [(512, 512)]


def test_silly_tavern(client: TestClient) -> None:
    """Its source `openai`, with dall-e-3."""
    body = {"prompt": PROMPT, "model": "dall-e-3", "size": "1024x1024", "n": 1, "quality": "standard", "style": "vivid"}
    answer = posted(client, GENERATIONS, json={**body, "response_format": "b64_json"})
    assert size_of(answer["data"][0]["b64_json"]) == (1024, 1024)


def test_silly_tavern_with_a1111(client: TestClient) -> None:
    """Its source `auto`: lists, and a picture with what its settings are at first."""
    for path in ("options", "samplers", "schedulers", "sd-models", "upscalers", "latent-upscale-modes", "sd-vae"):
        assert client.get(f"/sdapi/v1/{path}").status_code == 200
    body = {
        "url": "http://somewhere:7860",
        "auth": "",
        "prompt": f"best quality, absurdres, aesthetic, {PROMPT}",
        "negative_prompt": "lowres, bad anatomy, bad hands, text, error, cropped, worst quality, low quality",
        "sampler_name": "DDIM",
        "scheduler": "normal",
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 512,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.0,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    assert size_of(posted(client, TXT2IMG, json=body)["images"][0]) == (512, 512)


def test_ai_render(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    """For Blender: `operators.py` and `automatic1111_api.py` send a render, with names of the add-on's own beside."""
    body = {
        "prompt": f"{PROMPT}, trending on artstation",
        "negative_prompt": "ugly, bad art, poorly drawn hands, tiling, signature, cut off, draft",
        "width": 512,
        "height": 512,
        "image_similarity": 0.4,
        "seed": 1234567890,
        "cfg_scale": 7.0,
        "steps": 30,
        "sampler": "DPM++ 2M",
        "init_images": [f"data:image/png;base64,{base64.b64encode(png()).decode()}"],
        "denoising_strength": 0.6,
        "sampler_index": "DPM++ 2M",
    }
    assert size_of(posted(client, IMG2IMG, json=body)["images"][0]) == (512, 512)
    assert (asked[0]["strength"], asked[0]["seed"]) == (0.6, 1234567890)


def test_webuiapi(url: str) -> None:
    """https://pypi.org/project/webuiapi"""
    where = urlsplit(url)
    api = webuiapi.WebUIApi(host=where.hostname, port=where.port)
    picture, mask = Image.open(io.BytesIO(png())), Image.new("L", (512, 512), 255)
    drawn: list[Any] = [
        api.txt2img(prompt=PROMPT),
        api.img2img(images=[picture], prompt=PROMPT),
        api.img2img(images=[picture], mask_image=mask, prompt=PROMPT),
    ]
    # a real pipeline pastes what it draws under a mask into the picture; this engine gives it alone
    assert [each.image.size for each in drawn] == [(512, 512), (512, 512), (32, 32)]
    assert api.get_options()["sd_model_checkpoint"] == api.util_get_model_names()[0]
    assert api.get_progress()["progress"] == 0


def test_huggingface_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """https://pypi.org/project/huggingface-hub"""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(base_url=url)
    assert client.text_to_image(PROMPT).size == (32, 32)
    assert client.image_to_image(png((64, 32)), prompt=PROMPT).size == (64, 32)
