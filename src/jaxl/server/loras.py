"""The LoRAs that requests may ask for, as people and programs choose among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from jaxl.server.errors import RESPONSES
from jaxl.server.service import CurrentService

router = APIRouter(prefix="/v1", tags=["jaxl"], responses=RESPONSES)

# pictures, in base64
TOO_LARGE = {"ssmd_cover_images"}


class LoraItem(BaseModel):
    """A LoRA: requests ask for it by its `id`. Its training called it by its `trigger_words`."""

    id: str
    object: str
    base_model: str | None
    trigger_words: list[str]


class LoraList(BaseModel):
    object: str
    data: list[LoraItem]


class AsciiResponse(JSONResponse):
    """JSON in ASCII: names and metadata of files may have halves of characters, which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


@router.get("/loras", response_model=LoraList)
async def loras(service: CurrentService) -> AsciiResponse:
    """The LoRAs that there are now, by name."""
    data = [
        {"id": each.name, "object": "lora", "base_model": each.base_model, "trigger_words": each.trigger_words}
        for each in await service.loras()
    ]
    return AsciiResponse({"object": "list", "data": data})


def read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return a file's metadata as A1111 lists it: texts with JSON's objects are these objects."""
    return {name: _object_or_text(text) for name, text in metadata.items() if name not in TOO_LARGE}


def _object_or_text(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # it has no NaN, and is not too deep
    except (ValueError, RecursionError):
        return text
    return value
