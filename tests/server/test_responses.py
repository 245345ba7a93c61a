"""Pictures as calls of OpenAI's tool for images."""

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

RESPONSES = "/v1/responses"
RED = Image.new("RGB", (64, 32), "red")
TOOL: Any = {"type": "image_generation"}


def data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(call: Any) -> Image.Image:
    assert (call.type, call.status) == ("image_generation_call", "completed")
    return Image.open(io.BytesIO(base64.b64decode(call.result)))


@pytest.fixture
def theirs(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_client(theirs: openai.OpenAI, asked: list[Mapping[str, Any]]) -> None:
    tools: Any = [{**TOOL, "output_format": "jpeg"}]
    answer = theirs.responses.create(model="tiny", input="a cat", tools=tools, extra_body={"n": 2, "seed": 5})
    type(answer).model_validate(answer.model_dump(warnings=False))
    assert (answer.status, answer.model, answer.error, answer.output_text) == ("completed", "tiny", None, "")
    assert [picture(call).format for call in answer.output] == ["JPEG", "JPEG"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0
    assert (asked[0]["prompt"], asked[0]["seed"]) == ("a cat", 5)


def test_a_picture_and_a_mask(theirs: openai.OpenAI, asked: list[Mapping[str, Any]]) -> None:
    mask = RED.convert("RGBA")
    mask.putalpha(Image.fromarray(np.repeat([[0] * 20 + [255] * 44], 32, 0).astype(np.uint8)))
    content = [{"type": "input_text", "text": "a cat"}, {"type": "input_image", "image_url": data_url(RED)}]
    told: Any = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": content}]
    tools: Any = [{"type": "web_search"}, {**TOOL, "input_image_mask": {"image_url": data_url(mask)}, "size": "64x32"}]
    answer = theirs.responses.create(model="tiny", input=told, tools=tools)
    assert (np.asarray(picture(answer.output[0]))[:, 40:] == (255, 0, 0)).all()
    assert asked[0]["mask"].getpixel((0, 0)) == 255


def test_streams(theirs: openai.OpenAI) -> None:
    tools: Any = [{**TOOL, "partial_images": 2}]
    with theirs.responses.stream(model="tiny", input="a cat", tools=tools) as stream:
        events: list[Any] = list(stream)
        last = stream.get_final_response()
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "image_generation_call.partial_image",
        "image_generation_call.partial_image",
        "image_generation_call.completed",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(8))
    assert [event.partial_image_index for event in events[3:5]] == [0, 1]
    assert picture(last.output[0]).size == (32, 32)


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({}, "input", "required"),
        ({"input": []}, "input", "none is a user's"),
        ({"input": 5}, "input", "list"),
        ({"input": ""}, "input", "empty"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "nothing is kept"),
        ({"input": "a", "model": "gpt-5"}, "model", "not here"),
        ({"input": "a", "tools": [{**TOOL, "model": "gpt-image-1"}]}, "tools.model", "not here"),
        ({"input": "a", "tools": [{**TOOL, "output_format": "svg"}]}, "output_format", "png"),
        ({"input": "a", "tools": [{**TOOL, "background": "transparent"}]}, "background", "opaque"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a.b/c.png"}]}]},
            "input",
            "URLs are not fetched",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input",
            "not read",
        ),
    ],
)
def test_mistakes(client: TestClient, body: dict[str, Any], param: str, why: str) -> None:
    answer = client.post(RESPONSES, json=body)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param
    assert why in answer.json()["error"]["message"]
