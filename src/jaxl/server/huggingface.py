"""The images of Hugging Face's inference API, as `huggingface_hub.InferenceClient(model=URL)` asks for them.

https://huggingface.co/docs/inference-providers/tasks/text-to-image and image-to-image have the fields. The answer is
the file of one picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxl.call.images import read_image, read_mask
from jaxl.errors import InputError
from jaxl.server.edits import Source
from jaxl.server.errors import RESPONSES, ApiError, fields
from jaxl.server.hires import AskedHires
from jaxl.server.limits import Count, GuidanceScale, Loras, Name, Pixels, Proportion, Seed, Side
from jaxl.server.pictures import MEDIA_TYPES, Format, decode
from jaxl.server.service import CurrentService, Service, know_models
from jaxl.server.work import AnswerFiles
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
            "loras",
            "hires",
            "refiner",
            "refiner_at",
            "tile_size",
            "tile_overlap",
            "prompt_syntax",
        )
    },
    "steps": "parameters.num_inference_steps",
}
# the beginnings of PNG, JPEG and WebP files in base64, and of data URLs
PICTURES = ("iVBORw0KGgo", "/9j/", "UklGR", "data:image/")

router = APIRouter(
    tags=["Hugging Face"], dependencies=[Depends(know_models), Depends(fields(FIELDS))], responses=RESPONSES
)


class TargetSize(BaseModel):
    width: Side
    height: Side


class StartFields(BaseModel):
    """The pictures to start from where `inputs` is the prompt, as in inpainting."""

    image: str | None = Field(None, description="A PNG, JPEG or WebP picture in base64 to start from.")
    mask_image: str | None = Field(None, description="A picture of the same size, white where to paint anew.")


class Parameters(StartFields):
    """Null counts as not given, and fields of other models are passed over."""

    prompt: str | None = Field(None, description="Then `inputs` is the picture to start from.")
    negative_prompt: str | None = None
    num_inference_steps: Count | None = None
    guidance_scale: GuidanceScale | None = None
    width: Side | None = None
    height: Side | None = None
    target_size: TargetSize | None = Field(None, description="Width and height, as image-to-image calls them.")
    strength: Proportion | None = None
    seed: Seed | None = None
    scheduler: Name | None = None
    loras: Loras | None = None
    hires: AskedHires | None = None
    refiner: str | None = Field(None, description="A model of the server that draws the last steps.")
    refiner_at: Proportion | None = Field(None, description="Where it takes over, in shares of the noise levels; 0.8.")
    tile_size: Side | None = None
    tile_overlap: Pixels | None = None
    prompt_syntax: Syntax | None = Field(None, description="literal by default.")
    num_images_per_prompt: int | None = Field(None, ge=1, le=1, description="The answer is one picture.")


class InferenceRequest(StartFields):
    inputs: str = Field(description="The prompt, or a PNG, JPEG or WebP picture in base64 to start from.")
    parameters: Parameters | None = None


PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in MEDIA_TYPES.values()}}}


@router.post("/", response_class=Response, responses=PICTURE)
async def draw(http: HttpRequest, asked: InferenceRequest, service: CurrentService) -> Response:
    """Draw a picture of a prompt, or from another picture."""
    return await _draw(http, asked, service)


@router.post("/models/{name:path}", response_class=Response, responses=PICTURE)
async def draw_with(http: HttpRequest, name: str, asked: InferenceRequest, service: CurrentService) -> Response:
    """Draw with the model of this name."""
    return await _draw(http, asked, service, name)


async def _draw(http: HttpRequest, asked: InferenceRequest, service: Service, model: str | None = None) -> Response:
    format = accepted(http.headers.get("accept", "*/*"))
    wanted = asked.parameters or Parameters.model_validate({})
    size = wanted.target_size or wanted
    arguments = {
        "model": service.model_named(model),
        "prompt": asked.inputs,
        "negative_prompt": wanted.negative_prompt,
        "steps": wanted.num_inference_steps,
        "guidance_scale": wanted.guidance_scale,
        "width": size.width,
        "height": size.height,
        "seed": wanted.seed,
        "scheduler": wanted.scheduler,
        "loras": wanted.loras,
        "hires": None if wanted.hires is None else wanted.hires.read(),
        "refiner": wanted.refiner,
        "refiner_at": wanted.refiner_at,
        "tile_size": wanted.tile_size,
        "tile_overlap": wanted.tile_overlap,
        "prompt_syntax": wanted.prompt_syntax,
    }
    source = await asyncio.to_thread(_source, http, asked, wanted, service.settings.max_pixels)
    if source is not None:
        prompt = (wanted.prompt or "") if _is_picture(asked, wanted) else asked.inputs
        arguments |= {"prompt": prompt, "image": source.picture, "mask": source.mask, "strength": wanted.strength}
    elif wanted.strength is not None:
        raise InputError("strength", wanted.strength, "needs a picture in inputs")
    async with service.attended(http, arguments, policy=service.policy("strict", model)) as stream:
        result = await stream.result()
    file = await AnswerFiles(service, stream, source and source.seamless(), format).file(0, result.images[0])
    return Response(file.data, media_type=file.media_type)


def accepted(header: str) -> Format:
    """Return the kind of file that an Accept header prefers; PNG where it leaves the choice. Raises ApiError."""
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


def _is_picture(asked: InferenceRequest, wanted: Parameters) -> bool:
    """Return whether `inputs` is the picture to start from."""
    return wanted.prompt is not None or asked.inputs.startswith(PICTURES)


def _source(http: HttpRequest, asked: InferenceRequest, wanted: Parameters, max_pixels: int) -> Source | None:
    """Return the picture to start from, if there is one, and its mask; errors name the fields that held them."""
    picture = _only(
        {
            "inputs": asked.inputs if _is_picture(asked, wanted) else None,
            "image": asked.image or None,
            "parameters.image": wanted.image or None,
        }
    )
    mask = _only({"mask_image": asked.mask_image or None, "parameters.mask_image": wanted.mask_image or None})
    names = {"image": "inputs" if picture is None else picture[0], "mask": "mask_image" if mask is None else mask[0]}
    http.state.fields = {**FIELDS, **names}
    if picture is None:
        if mask is not None:
            raise InputError("mask", "a mask", "needs a picture, in inputs or in parameters.image")
        return None
    image = read_image(decode(picture[1], "image", max_pixels), "image")
    if mask is None:
        return Source(image)
    return Source(image, read_mask(decode(mask[1], "mask", max_pixels), "mask", image.size))


def _only(given: Mapping[str, str | None]) -> tuple[str, str] | None:
    """Return the field that is given, and its value. Raises ApiError for more than one."""
    found = [(name, data) for name, data in given.items() if data is not None]
    if len(found) > 1:
        name = found[1][0]
        raise ApiError(
            400, str(InputError(name, "another picture", f"there is one in {found[0][0]}; send one")), param=name
        )
    return found[0] if found else None
