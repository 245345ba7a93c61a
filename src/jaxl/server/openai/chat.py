"""Pictures as answers in a chat: the last message of a user is the prompt, and may hold a picture to start from.

OpenRouter (https://openrouter.ai/docs/features/multimodal/image-generation) puts pictures into `images` of a message,
vLLM-Omni (https://docs.vllm.ai/projects/vllm-omni, Chat Completions API) into `content`; so does this.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxl.engine import Drawn
from jaxl.errors import InputError
from jaxl.server.errors import RESPONSES, fields
from jaxl.server.events import EventStream
from jaxl.server.openai.images import DRAWN, FIELDS, base64_of, begin, check, draw
from jaxl.server.openai.messages import Message, asked_of, start_of
from jaxl.server.pictures import MEDIA_TYPES
from jaxl.server.service import CurrentService, know_models
from jaxl.server.sizes import as_text, shaped
from jaxl.server.work import AnswerFiles

# there are no tokens to pay for
USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

ASPECT = "image_config.aspect_ratio"

router = APIRouter(
    prefix="/v1",
    tags=["OpenAI"],
    dependencies=[Depends(know_models), Depends(fields({**FIELDS, "prompt": "messages", "image": "messages"}))],
    responses=RESPONSES,
)


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ImageConfig(BaseModel):
    """OpenRouter's settings of pictures."""

    aspect_ratio: str | None = Field(None, description="Such as 16:9, of the server's size that is nearest to it.")
    image_size: Literal["1K"] | None = None


class Chat(BaseModel):
    """Further fields are those of `/v1/images/edits` in JSON; vLLM-Omni's clients have them in `extra_body`."""

    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: list[str] | None = Field(None, description="What to answer with; image must be one of them.")
    image_config: ImageConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("extra_body"), dict):
            return {**given, **given["extra_body"]}
        return given


@router.post("/chat/completions", response_model=None, responses=DRAWN)
async def complete(http: HttpRequest, chat: Chat, service: CurrentService) -> Response | dict[str, Any]:
    """Draw what the last message of a user asks for."""
    if chat.modalities is not None and "image" not in chat.modalities:
        raise InputError("modalities", chat.modalities, "this server draws; let image be one of them")
    given = _as_images_api(chat.model_extra or {}) | {"model": chat.model}
    if chat.image_config is not None and (aspect := chat.image_config.aspect_ratio) is not None:
        if given.get("size") is not None:
            raise InputError(ASPECT, aspect, f"there is a size too, {given['size']}; leave one of them out")
        given = {"size_policy": "nearest"} | given | {"size": as_text(shaped(ASPECT, aspect, service.settings.sizes))}
    asked = asked_of(given, chat.messages, "messages")
    check(asked, service)
    arguments, source = await start_of(asked, service)
    head = {
        "id": f"chatcmpl-{http.state.request_id}",
        "created": int(time.time()),
        "model": chat.model or service.settings.model,
    }
    if chat.stream:
        work = await begin(http, service, asked, arguments, source)
        usage = chat.stream_options is not None and bool(chat.stream_options.include_usage)
        return EventStream(_chunks(work, head, usage), owner=work.stream)
    work, result = await draw(http, service, asked, arguments, source)
    images = [await _image(work, index, picture) for index, picture in enumerate(result.images)]
    content = "" if chat.modalities else images
    message = {"role": "assistant", "content": content, "refusal": None, "images": images}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE}


async def _chunks(work: AnswerFiles, head: dict[str, Any], usage: bool) -> AsyncIterator[bytes]:
    yield _chunk(head, {"role": "assistant", "content": ""})
    async for news in work.stream:
        if isinstance(news, Drawn):
            yield _chunk(head, {"content": "", "images": [await _image(work, news.image, news.picture)]})
    await work.stream.result()  # raises its error, if it has one
    yield _chunk(head, {}, finish_reason="stop")
    if usage:
        yield _data({**head, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return _data({**head, "object": "chat.completion.chunk", "choices": [choice]})


def _data(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def _image(work: AnswerFiles, index: int, picture: Any) -> dict[str, Any]:
    url = f"data:{MEDIA_TYPES[work.format]};base64,{await base64_of(work, index, picture)}"
    return {"type": "image_url", "index": index, "image_url": {"url": url}}


def _as_images_api(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with the names of OpenAI's images API where vLLM-Omni has others."""
    size = f"{given.get('width')}x{given.get('height')}"
    other = {"size": None if size == "NonexNone" else size, "n": given.get("num_outputs_per_prompt")}
    return {name: value for name, value in other.items() if value is not None} | given
