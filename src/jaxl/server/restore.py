"""The settings in a picture's file, so that it can be drawn again."""

from __future__ import annotations

import asyncio
import math
import re
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from jaxl.errors import InputError
from jaxl.png import read_a1111_text, read_settings_text
from jaxl.server.a1111_fields import scheduler_of
from jaxl.server.errors import RESPONSES, ApiError
from jaxl.server.pictures import decode
from jaxl.server.service import CurrentService

router = APIRouter(prefix="/v1/images", tags=["jaxl"], responses=RESPONSES)

A1111_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


class Picture(BaseModel):
    image: Annotated[str, Field(description="A PNG, in base64.")]


@router.post("/settings")
async def settings(asked: Picture, service: CurrentService) -> dict[str, Any]:
    """What made a picture, by the names of `Pipeline.generate`: what jaxl wrote into its file, or A1111 and its kin.

    The seed is a text, because it has up to 64 bits, and JSON's readers often 53.
    """
    image = await asyncio.to_thread(decode, asked.image, "image", service.settings.max_pixels)
    own, parameters = (image.info.get(name) for name in ("jaxl", "parameters"))
    if isinstance(own, str):
        found = read_settings_text(own, "image")
    elif isinstance(parameters, str):
        found = a1111_settings(read_a1111_text(parameters), service.settings.scheduler)
    else:
        raise InputError("image", "a picture", "no settings in it; give a PNG as jaxl or A1111 wrote it")
    return {**found, "seed": str(found["seed"])} if "seed" in found else found


def a1111_settings(known: dict[str, str], default: str) -> dict[str, Any]:
    """What jaxl calls the settings that a `parameters` text has; what cannot be read is left out.

    `default` is the scheduler that a type of schedule alone is for.
    """
    found: dict[str, Any] = {"prompt": known.get("Prompt", ""), "negative_prompt": known.get("Negative prompt", "")}
    readers = {
        "Steps": ("steps", int),
        "CFG scale": ("guidance_scale", float),
        "Seed": ("seed", int),
        "Denoising strength": ("strength", float),
    }
    for label, (name, read) in readers.items():
        with suppress(KeyError, ValueError):
            number = read(known[label])
            if math.isfinite(number):
                found[name] = number
    if match := A1111_SIZE.fullmatch(known.get("Size", "")):
        found["width"], found["height"] = map(int, match.groups())
    try:
        scheduler = scheduler_of(known.get("Sampler"), known.get("Schedule type"), default)
    except (InputError, ApiError):
        scheduler = None  # another program's own
    return found if scheduler is None else {**found, "scheduler": scheduler}
