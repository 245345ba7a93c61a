"""The images of Hugging Face's inference API, as `huggingface_hub.InferenceClient(model=URL)` asks for them.

https://huggingface.co/docs/inference-providers/tasks/text-to-image and image-to-image have the fields. The answer is
the file of one picture.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends
from PIL import Image
from pydantic import BaseModel, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxl.errors import InputError
from jaxl.images import read_image
from jaxl.server.errors import RESPONSES, ApiError, fields
from jaxl.server.limits import Count, Guidance, Name, Seed, Share, Side
from jaxl.server.pictures import MEDIA_TYPES, Format, decode
from jaxl.server.service import CurrentService, Service, check_model
from jaxl.server.work import Work
from jaxl.text.prompt import Syntax

# the arguments of `Pipeline.generate` that have other names here
FIELDS = {
    "prompt": "inputs",
    "image": "inputs",
    **{
        name: f"parameters.{name}"
        for name in (
            "negative_prompt",
            "guidance_scale",
            "width",
            "height",
            "seed",
            "scheduler",
            "strength",
            "prompt_syntax",
        )
    },
    "steps": "parameters.num_inference_steps",
}
# how PNG, JPEG and WebP files begin in base64, and data URLs
PICTURES = ("iVBORw0KGgo", "/9j/", "UklGR", "data:image/")

router = APIRouter(tags=["Hugging Face"], dependencies=[Depends(fields(FIELDS))], responses=RESPONSES)


class TargetSize(BaseModel):
    width: Side
    height: Side


class Parameters(BaseModel):
    """Null is not given, and fields of other models are passed over."""

    prompt: str | None = Field(None, description="Then `inputs` is the picture to start from.")
    negative_prompt: str | None = None
    num_inference_steps: Count | None = None
    guidance_scale: Guidance | None = None
    width: Side | None = None
    height: Side | None = None
    target_size: TargetSize | None = Field(None, description="Width and height, as image-to-image calls them.")
    strength: Share | None = None
    seed: Seed | None = None
    scheduler: Name | None = None
    prompt_syntax: Syntax | None = Field(None, description="literal by default.")
    num_images_per_prompt: int | None = Field(None, ge=1, le=1, description="The answer is one picture.")


class Asked(BaseModel):
    inputs: str = Field(description="The prompt, or a PNG, JPEG or WebP picture in base64 to start from.")
    parameters: Parameters | None = None


PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in MEDIA_TYPES.values()}}}


@router.post("/", response_class=Response, responses=PICTURE)
async def draw(http: HttpRequest, asked: Asked, service: CurrentService) -> Response:
    """Draw a picture of a prompt, or from another picture."""
    return await _draw(http, asked, service)


@router.post("/models/{name:path}", response_class=Response, responses=PICTURE)
async def draw_with(http: HttpRequest, name: str, asked: Asked, service: CurrentService) -> Response:
    """Draw with the model of this name, which is the server's."""
    check_model(name, service.settings)
    return await _draw(http, asked, service, name)


async def _draw(http: HttpRequest, asked: Asked, service: Service, model: str | None = None) -> Response:
    format = accepted(http.headers.get("accept", "*/*"))
    wanted = asked.parameters or Parameters.model_validate({})
    size = wanted.target_size or wanted
    arguments = {
        "prompt": asked.inputs,
        "negative_prompt": wanted.negative_prompt,
        "steps": wanted.num_inference_steps,
        "guidance_scale": wanted.guidance_scale,
        "width": size.width,
        "height": size.height,
        "seed": wanted.seed,
        "scheduler": wanted.scheduler,
        "prompt_syntax": wanted.prompt_syntax,
    }
    if wanted.prompt is not None or asked.inputs.startswith(PICTURES):
        image = await asyncio.to_thread(_picture, asked.inputs, service)
        arguments |= {"prompt": wanted.prompt or "", "image": image, "strength": wanted.strength}
    elif wanted.strength is not None:
        raise InputError("strength", wanted.strength, "needs a picture in inputs")
    async with service.attended(http, arguments, policy=service.policy("strict", model)) as stream:
        result = await stream.result()
    file = await Work(service, stream, format=format).file(0, result.images[0])
    return Response(file.data, media_type=file.media_type)


def accepted(header: str) -> Format:
    """The kind of file that an Accept header prefers; PNG where it leaves the choice. Raises ApiError."""
    weights: dict[str, float] = {}
    for part in header.split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        try:
            weights[kind] = float(quality)
        except ValueError:
            weights[kind] = 0.0
    any_kind = weights.get("image/*", weights.get("*/*", 0.0))
    best = max(MEDIA_TYPES, key=lambda format: weights.get(MEDIA_TYPES[format], any_kind))
    if not weights.get(MEDIA_TYPES[best], any_kind) > 0:
        known = ", ".join(MEDIA_TYPES.values())
        raise ApiError(406, f"Accept is {header[:100]!r}; the answer is a picture: {known}", param="Accept")
    return best


def _picture(data: str, service: Service) -> Image.Image:
    return read_image(decode(data, "inputs", service.settings.max_pixels), "inputs")
