"""Pictures as answers in a chat, as OpenRouter and vLLM-Omni shape them."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

CHAT = "/v1/chat/completions"
RED = Image.new("RGB", (64, 32), "red")
USER = {"role": "user", "content": "a cat"}
OPENROUTER = {"modalities": ["image", "text"]}


def data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


URL = data_url(RED)


def picture(image: Mapping[str, Any]) -> Image.Image:
    assert image["type"] == "image_url"
    head, _, data = image["image_url"]["url"].partition(",")
    drawn = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{(drawn.format or '').lower()};base64"
    return drawn


@pytest.fixture
def theirs(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_openrouter(theirs: openai.OpenAI, asked: list[Mapping[str, Any]]) -> None:
    """The last message of a user counts, and nothing else that is said."""
    messages: Any = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": [{"type": "text", "text": "a dog"}]},
        {"role": "assistant", "content": "", "images": [{"type": "image_url", "image_url": {"url": URL}}]},
        {"role": "user", "content": "a cat"},
    ]
    answer = theirs.chat.completions.create(
        model="tiny", messages=messages, temperature=0.7, max_tokens=9, extra_body={**OPENROUTER, "seed": 3}
    )
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", "tiny", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "")
    images = (message.model_extra or {})["images"]
    assert [picture(image).size for image in images] == [(32, 32)]
    assert (asked[0]["prompt"], asked[0]["seed"], "image" in asked[0]) == ("a cat", 3, False)


def test_a_picture_to_start_from(theirs: openai.OpenAI, asked: list[Mapping[str, Any]]) -> None:
    messages: Any = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": URL}}],
        }
    ]
    extra = {**OPENROUTER, "strength": 0.3, "output_format": "webp"}
    message = theirs.chat.completions.create(model="tiny", messages=messages, extra_body=extra).choices[0].message
    assert picture((message.model_extra or {})["images"][0]).size == (64, 32)
    assert (asked[0]["prompt"], asked[0]["strength"]) == ("a cat", 0.3)
    assert asked[0]["image"].convert("RGB").tobytes() == RED.tobytes()


@pytest.mark.parametrize(
    "content", [[{"text": "a cat"}, {"image": URL.partition(",")[2]}], [{"type": "input_image", "image_url": URL}]]
)
def test_other_forms_of_parts(client: TestClient, asked: list[Mapping[str, Any]], content: Any) -> None:
    answer = client.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 200, answer.text
    assert asked[0]["image"].size == (64, 32)


def test_vllm_omni(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    """Fields in a body of their own, with names of their own, and pictures in `content`."""
    extra = {"width": 64, "height": 32, "num_inference_steps": 4, "seed": 42, "num_outputs_per_prompt": 2}
    body = {"messages": [{"role": "user", "content": "a cat"}], "extra_body": {**extra, "true_cfg_scale": 4.0}}
    answer = client.post(CHAT, json=body).json()
    content = answer["choices"][0]["message"]["content"]
    assert [picture(each).size for each in content] == [(64, 32), (64, 32)]
    assert (asked[0]["steps"], asked[0]["seed"], asked[0]["num_images"]) == (4, 42, 2)


@pytest.mark.parametrize(
    ("aspect", "size", "drawn"),
    [
        ("1:1", (32, 32), (32, 32)),
        ("2:1", (64, 32), (64, 32)),
        ("16:9", (56, 32), (64, 32)),
        ("2:3", (16, 32), (32, 32)),
    ],
)
def test_the_aspect_of_openrouter(
    client: TestClient, asked: list[Mapping[str, Any]], aspect: str, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    body = {"messages": [USER], "image_config": {"aspect_ratio": aspect, "image_size": "1K"}, **OPENROUTER}
    (image,) = client.post(CHAT, json=body).json()["choices"][0]["message"]["images"]
    assert (picture(image).size, (asked[0]["width"], asked[0]["height"])) == (size, drawn)


def test_streams(theirs: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a cat"}]
    chunks = list(
        theirs.chat.completions.create(
            model="tiny",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={**OPENROUTER, "n": 2},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    images = [image for delta in deltas for image in (delta.model_extra or {}).get("images", [])]
    assert {image["index"] for image in images} == {0, 1}
    assert {picture(image).size for image in images} == {(32, 32)}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_streams_end_as_clients_expect(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a cat"}], "stream": True}
    answer = client.post(CHAT, json=body)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[:-1])


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "list"),
        ({"messages": [{"role": "system", "content": "a cat"}]}, "messages", "none is a user's"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "empty"),
        ({"messages": [{"role": "user"}]}, "messages", "empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "list"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages", "not read"),
        (
            {"messages": [{"role": "user", "content": [{"image_url": {"url": "https://example.org/a.png"}}]}]},
            "messages",
            "URLs are not fetched",
        ),
        ({"messages": [{"role": "user", "content": [{"image_url": URL}] * 2}]}, "messages", "send one"),
        ({"messages": [USER], "modalities": ["text"]}, "modalities", "image"),
        ({"messages": [USER], "model": "gpt-4o"}, "model", "not here"),
        ({"messages": [USER], "size": "1x1"}, "size", "this server draws"),
        ({"messages": [USER], "extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "1"),
        ({"messages": [USER], "n": 11}, "n", "at most"),
        ({"messages": [USER], "image_config": {"aspect_ratio": "wide"}}, "image_config.aspect_ratio", "as in 16:9"),
        ({"messages": [USER], "image_config": {"aspect_ratio": "9:1"}}, "image_config.aspect_ratio", "from 1:4 to 4:1"),
        (
            {"messages": [USER], "image_config": {"aspect_ratio": "1:1"}, "size": "32x32"},
            "image_config.aspect_ratio",
            "there is a size too, 32x32",
        ),
        ({"messages": [USER], "image_config": {"image_size": "4K"}}, "image_config.image_size", "'1K'"),
        ({"messages": [USER], "strength": 0.5}, "messages", "send one"),
    ],
)
def test_mistakes(client: TestClient, body: dict[str, Any], param: str, why: str) -> None:
    answer = client.post(CHAT, json=body)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert why in error["message"]
