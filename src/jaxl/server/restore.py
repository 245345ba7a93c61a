"""The settings in a picture's file, so that it can be drawn again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request as HttpRequest

from jaxl.errors import respelled
from jaxl.metadata import Settings, settings_of
from jaxl.metadata.a1111 import from_pairs, program_of
from jaxl.metadata.settings import Reading
from jaxl.server.controls import MOST_CONTROLS, ControlField
from jaxl.server.errors import RESPONSES
from jaxl.server.image_prompts import MOST_PROMPTS, ImagePromptField
from jaxl.server.openai.images import JsonRoute
from jaxl.server.pictures import MEDIA_TYPES, from_base64
from jaxl.server.service import CurrentService, Service, know_models
from jaxl.weights.adapters.strength import Strength

router = APIRouter(prefix="/v1/images", tags=["jaxl"], dependencies=[Depends(know_models)], responses=RESPONSES)

PATH = "/settings"
# the schema describes a path once: the JSON, with the picture itself beside it
AS_FILE = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}


@dataclass(frozen=True)
class Pictured:
    """What a request has several of, each with pictures of its own, of which a file tells all but these pictures.

    fields, most: as requests have it. lacking: what stands for the pictures.
    """

    fields: type[ControlField | ImagePromptField]
    most: int
    lacking: Mapping[str, Any]


PICTURED: Mapping[str, Pictured] = {
    "controls": Pictured(ControlField, MOST_CONTROLS, {"image": ""}),
    "image_prompts": Pictured(ImagePromptField, MOST_PROMPTS, {"images": [""]}),
}


class PictureFile(BaseModel):
    image: Annotated[str, Field(description="A PNG, JPEG or WebP picture, in base64.")]


async def settings(asked: PictureFile, service: CurrentService) -> dict[str, Any]:
    """What made a picture, by the names of `Pipeline.generate`, whichever program wrote it into the file.

    The seed is a text, because it has up to 64 bits, and JSON's readers often 53. `program` drew it. `unread` has a
    line for each thing that it was made with and that is not among these settings, or not on this server.
    """
    data = await asyncio.to_thread(from_base64, asked.image, "image")
    return await _settings(data, service)


IN_A_FILE = {"requestBody": {"content": AS_FILE}}
router.add_api_route(PATH, settings, methods=["POST"], route_class_override=JsonRoute, openapi_extra=IN_A_FILE)


@router.post(PATH, include_in_schema=False)
async def settings_of_file(http: HttpRequest, service: CurrentService) -> dict[str, Any]:
    """`settings` of a picture that is the body."""
    return await _settings(await http.body(), service)


async def _settings(data: bytes, service: Service) -> dict[str, Any]:
    found = await asyncio.to_thread(settings_of, data, argument="image", max_pixels=service.settings.max_pixels)
    loras = [each.name for each in await service.loras()] if any(n.kind == "lora" for n in found.networks) else []
    server = service.settings
    embeddings = [each.hash or each.name for each in server.embeddings]
    upscalers = [name for name, _ in server.upscalers]
    models = {name: each.name for each in service.engine.models() for name in each.names}
    has = {"model": [*server.names, *models], "lora": loras, "embedding": embeddings, "upscaler": upscalers}
    has["refiner"] = [*models]
    chosen: dict[str, Any] = {}
    for each in found.networks:
        if each.kind in ("model", "refiner") and (own := models.get(each.name) or models.get(each.hash)) is not None:
            chosen[each.kind] = own
    if "refiner" in chosen and found.refiner_at is not None:
        chosen["refiner_at"] = found.refiner_at
    return {**told(found, has, server.ip_adapters), **chosen}


def a1111_settings(known: Mapping[str, str], scheduler: str = "euler") -> dict[str, Any]:
    """Return what a client is told of the pairs of A1111's text; `scheduler` is meant where a schedule stands alone."""
    alone = {"Sampler": scheduler} if "Schedule type" in known else {}
    return told(from_pairs(Reading(program_of(known)), {**alone, **known}))


def told(
    found: Settings, has: Mapping[str, Collection[str]] | None = None, ip_adapters: Collection[str] = ()
) -> dict[str, Any]:
    """Return what a client is told of settings; a server `has` networks by their kinds, and `ip_adapters`."""
    arguments = dict(found.arguments)
    if "seed" in arguments:
        arguments["seed"] = str(arguments["seed"])
    if isinstance(arguments.get("loras"), Mapping):
        strengths = arguments["loras"].items()
        arguments["loras"] = {name: own.unet if isinstance(own, Strength) else own for name, own in strengths}
    if (hires := arguments.get("hires")) is not None:
        arguments["hires"] = hires.facts
    if "regions" in arguments:
        arguments["regions"] = [each.facts for each in arguments["regions"]]
    # a name may say more than the text of A1111 does
    adapters = tuple(each for each in found.controls if each.get("name") in ip_adapters)
    controls = tuple(each for each in found.controls if each not in adapters)
    found = replace(found, controls=controls, image_prompts=(*adapters, *found.image_prompts))
    unread = [respelled(line, _spelled) for line in found.lacking(has)]
    return {**arguments, **_pictured(found), "program": found.program, "unread": unread}


def _spelled(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


def _pictured(settings: Settings) -> dict[str, Any]:
    """Return controls and image prompts without their pictures, as far as requests can have them."""
    found = {}
    for label, kind in PICTURED.items():
        read = []
        for each in getattr(settings, label):
            with suppress(ValidationError):
                facts = {name: value for name, value in each.items() if name in kind.fields.model_fields}
                read.append(kind.fields.model_validate({**facts, **kind.lacking}))
        if read:
            shown = read[: kind.most]
            found[label] = [each.model_dump(exclude={*kind.lacking}, exclude_unset=True) for each in shown]
    return found
