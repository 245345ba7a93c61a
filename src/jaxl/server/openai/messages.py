"""The messages of a chat as a request of the images API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from jaxl.errors import InputError
from jaxl.server.edits import Source
from jaxl.server.openai.fields import Picture
from jaxl.server.openai.images import EditInJson, edit_of
from jaxl.server.service import Service

# fields of the images API that mean something else in a chat, or nothing
OTHER = {"prompt", "image", "images", "response_format", "progress"}
OWN = EditInJson.model_fields.keys() - OTHER


class MessagePart(BaseModel):
    type: str | None = None
    text: str | None = None
    image_url: Picture | None = Field(None, description="A data URL; nothing is fetched.")
    image: Picture | None = Field(None, description="The same, as some clients call it.")

    @property
    def picture(self) -> str | None:
        return self.image_url or self.image


def _parts_of(content: Any) -> Any:
    return [{"text": content}] if isinstance(content, str) else [] if content is None else content


CONTENT = {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": MessagePart.model_json_schema()}]}
Content = Annotated[list[MessagePart], BeforeValidator(_parts_of), WithJsonSchema(CONTENT)]


class Message(BaseModel):
    role: str | None = None
    content: Content = []


def asked_of(given: Mapping[str, Any], messages: Sequence[Message], param: str) -> EditInJson:
    """Return a request for the last message of a user, with the fields of `given` that the images API has.

    `param` is the field with the messages. Raises InputError and RequestValidationError.
    """
    said = [message.content for message in messages if message.role == "user"]
    if not said:
        raise InputError(param, f"{len(messages)} in all", "none is a user's; the text of the last one is the prompt")
    for part in said[-1]:
        if part.text is None and part.picture is None:
            raise InputError(param, part.type, "such parts are not read; send text, and a picture as a data URL")
    text = "\n".join(part.text for part in said[-1] if part.text)
    pictures = [part.picture for part in said[-1] if part.picture]
    if not text and not pictures:
        raise InputError(param, "", "the last one of a user is empty; its text is the prompt")
    own = {name: value for name, value in given.items() if name in OWN}
    try:
        return EditInJson.model_validate({**own, "prompt": text, "image": pictures})
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from None


async def start_of(asked: EditInJson, service: Service) -> tuple[dict[str, Any], Source | None]:
    """Return the arguments and the source as `edit_of` does; the source is None without a picture to start from."""
    if asked.image or asked.mask is not None or asked.strength is not None:
        return await edit_of(asked, asked.image, asked.mask, service)
    return asked.arguments(), None
