"""Pictures through `/v1/responses`, as OpenAI's tool for images gives them.

https://platform.openai.com/docs/guides/tools-image-generation. There is no model for text in between: the last message
of a user is the prompt, and each picture is one call of the tool.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxl.engine import Drawn, Preview
from jaxl.errors import InputError
from jaxl.server.errors import RESPONSES, fields
from jaxl.server.events import EventStream, event
from jaxl.server.openai.fields import PictureUrl
from jaxl.server.openai.images import DRAWN, FIELDS, USAGE, base64_of, begin, check, draw
from jaxl.server.openai.messages import Message, asked_of, start_of
from jaxl.server.service import CurrentService, know_models
from jaxl.server.sizes import as_text
from jaxl.server.work import AnswerFiles

TOOL = "image_generation"

router = APIRouter(
    prefix="/v1",
    tags=["OpenAI"],
    dependencies=[Depends(know_models), Depends(fields({**FIELDS, "prompt": "input", "image": "input"}))],
    responses=RESPONSES,
)


class Tool(BaseModel):
    """Further fields are those of `/v1/images/edits` in JSON."""

    model_config = ConfigDict(extra="allow")

    type: str
    input_image_mask: PictureUrl | None = None


def _messages_of(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


INPUT = {"anyOf": [{"type": "string"}, {"type": "array", "items": Message.model_json_schema()}]}


class ResponsesRequest(BaseModel):
    """Further fields are those of `/v1/images/edits` in JSON, like those of the tool."""

    model_config = ConfigDict(extra="allow")

    input: Annotated[list[Message], BeforeValidator(_messages_of), WithJsonSchema(INPUT)]
    model: str | None = None
    stream: bool | None = None
    tools: list[Tool] | None = None
    previous_response_id: str | None = Field(None, description="Nothing is kept: send the picture again.")


@router.post("/responses", response_model=None, responses=DRAWN)
async def respond(http: HttpRequest, body: ResponsesRequest, service: CurrentService) -> Response | dict[str, Any]:
    """Draw what the last message of a user asks for."""
    if body.previous_response_id is not None:
        raise InputError("previous_response_id", body.previous_response_id, "nothing is kept here; send the picture")
    tool = next((tool for tool in body.tools or [] if tool.type == TOOL), Tool(type=TOOL))
    options = tool.model_extra or {}
    service.model_named(options.get("model"), "tools.model")
    service.model_named(body.model)
    own = {"mask": tool.input_image_mask, "model": options.get("model") or body.model, "stream": body.stream}
    asked = asked_of({**(body.model_extra or {}), **options, **own}, body.input, "input")
    check(asked, service)
    arguments, source = await start_of(asked, service)
    head = {
        "id": f"resp_{http.state.request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "model": body.model or service.settings.model,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": TOOL}],
    }
    if body.stream:
        work = await begin(http, service, asked, arguments, source)
        return EventStream(_events(work, head), owner=work.stream)
    work, result = await draw(http, service, asked, arguments, source)
    calls = [await _call(work, image, picture) for image, picture in enumerate(result.images)]
    return _completed(head, calls)


async def _events(work: AnswerFiles, head: dict[str, Any]) -> AsyncIterator[bytes]:
    numbers, shown = count(), Counter[int]()

    def told(name: str, **more: Any) -> bytes:
        name = f"response.{name}"
        return event(name, {"type": name, "sequence_number": next(numbers), **more})

    begun = {**head, "status": "in_progress", "output": []}
    yield told("created", response=begun)
    yield told("in_progress", response=begun)
    images = range(work.stream.arguments["num_images"])
    for image in images:
        item = {"type": f"{TOOL}_call", "id": _id(work, image), "status": "in_progress", "result": None}
        yield told("output_item.added", output_index=image, item=item)
    calls: dict[int, dict[str, Any]] = {}
    async for news in work.stream:
        match news:
            case Preview(image=image, pixels=pixels):
                data = await work.service.encode_preview(pixels, format=work.format, quality=work.quality)
                yield told(
                    f"{TOOL}_call.partial_image",
                    item_id=_id(work, image),
                    output_index=image,
                    partial_image_index=shown[image],
                    partial_image_b64=base64.b64encode(data).decode(),
                )
                shown[image] += 1
            case Drawn(image=image, picture=picture):
                calls[image] = await _call(work, image, picture)
                yield told(f"{TOOL}_call.completed", item_id=_id(work, image), output_index=image)
                yield told("output_item.done", output_index=image, item=calls[image])
    await work.stream.result()  # raises its error, if it has one
    yield told("completed", response=_completed(head, [calls[image] for image in images]))


async def _call(work: AnswerFiles, image: int, picture: Image.Image) -> dict[str, Any]:
    return {
        "type": f"{TOOL}_call",
        "id": _id(work, image),
        "status": "completed",
        "result": await base64_of(work, image, picture),
        "output_format": work.format,
        "size": as_text(work.size(picture)),
        "seed": work.stream.ticket.seeds[image],
    }


def _id(work: AnswerFiles, image: int) -> str:
    return f"ig_{work.stream.id}_{image}"


def _completed(head: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    details = {
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {**head, "status": "completed", "output": calls, "usage": {**USAGE, **details}}
