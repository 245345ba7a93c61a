"""Pictures as the bodies of OpenAI's APIs have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

URL_SCHEMA: dict[str, Any] = {"type": "string", "description": "A data URL, or base64."}
PICTURE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        URL_SCHEMA,
        {"type": "object", "properties": {"image_url": URL_SCHEMA}, "required": ["image_url"]},
    ]
}


def _url_of(value: Any) -> Any:
    """Return the URL out of the objects in which OpenAI and others put it."""
    while isinstance(value, Mapping):
        if value.get("file_id") is not None:
            raise PydanticCustomError("file_id", "no files are kept here; send a data URL")
        value = value.get("image_url", value.get("url"))
    return value


def _list_of(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


Picture = Annotated[str, BeforeValidator(_url_of), WithJsonSchema(PICTURE_SCHEMA)]
Pictures = Annotated[
    list[Picture],
    BeforeValidator(_list_of),
    WithJsonSchema({"anyOf": [PICTURE_SCHEMA, {"type": "array", "items": PICTURE_SCHEMA}, {"type": "null"}]}),
]
