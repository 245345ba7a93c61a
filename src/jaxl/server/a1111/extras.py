"""The tab "Extras" of A1111's API: pictures made larger, by an upscaler of the server, Lanczos or pixels repeated.

Names and meanings are those of the web UI's version 1.10 (`modules/api/models.py`,
`scripts/postprocessing_upscale.py`).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest

from jaxl.call.images import read_image
from jaxl.call.upscale import RESAMPLINGS, Size, check_pixels, check_scale, enlarged, scaled_size
from jaxl.errors import QueueFullError, nearest
from jaxl.png import kept_texts, png_bytes
from jaxl.server.a1111.options import refusal
from jaxl.server.errors import A1111_RESPONSES, fields
from jaxl.server.keys import Key
from jaxl.server.limits import Name, Proportion
from jaxl.server.pictures import decode
from jaxl.server.service import CurrentService, Service

NONE = "None"
# what A1111 calls those that need no network
RESAMPLED = {name.capitalize(): name for name in RESAMPLINGS}
BY, TO = 0, 1  # the modes: by a factor, to a size

MOST_PICTURES = 16
MOST_WAITING = 16  # requests, each with its body in memory
# seconds until one more may have room, where nobody knows how long a network takes
RETRY = 10.0
# one after another, so that large pictures are not in memory together, and other users' steps have the devices between
WORKER = ThreadPoolExecutor(1, "upscale")

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"], dependencies=[Depends(fields({}))], responses=A1111_RESPONSES)


class Extras(BaseModel):
    """How pictures are made larger."""

    model_config = ConfigDict(allow_inf_nan=False)

    resize_mode: int = Field(BY, ge=BY, le=TO, description="0: by `upscaling_resize`; 1: to the two sides.")
    upscaling_resize: float = 2.0
    upscaling_resize_w: int = Field(512, ge=1, le=16384)
    upscaling_resize_h: int = Field(512, ge=1, le=16384)
    upscaling_crop: bool = Field(True, description="With 1: fill both sides, and cut off what is over.")
    upscaler_1: Name = NONE
    upscaler_2: Name = NONE
    extras_upscaler_2_visibility: Proportion = Field(0.0, description="How much the second one counts.")
    show_extras_results: bool = True
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0
    codeformer_weight: float = 0.0
    upscale_first: bool = False


class ExtrasOne(Extras):
    image: str = Field(description="A PNG, JPEG or WebP picture, in base64 or as a data URL.")


class NamedPicture(BaseModel):
    data: str
    name: str = ""


class ExtrasBatch(Extras):
    imageList: Annotated[list[NamedPicture], Field(min_length=1, max_length=MOST_PICTURES)]  # noqa: N815 (A1111's)


class ExtrasOneAnswer(BaseModel):
    """`image` is a PNG file in base64, with the texts of the picture that was sent."""

    html_info: str
    image: str


class ExtrasBatchAnswer(BaseModel):
    html_info: str
    images: list[str]


@router.get("/upscalers")
async def upscalers(service: CurrentService) -> list[dict[str, Any]]:
    """What enlarges pictures; files are on the server, and of no interest to clients."""
    networks = service.settings.upscalers
    scales = {NONE: 1, **dict.fromkeys(RESAMPLED, 4), **dict(networks)}
    names = dict(networks)
    return [
        {
            "name": name,
            "model_name": name if name in names else None,
            "model_path": None,
            "model_url": None,
            "scale": float(scale),
        }
        for name, scale in scales.items()
    ]


@router.post("/extra-single-image")
async def extra_single_image(http: HttpRequest, asked: ExtrasOne, service: CurrentService) -> ExtrasOneAnswer:
    """Make a picture larger."""
    (made,) = await _in_turn(asked, [asked.image], "image", service, http.state.key)
    return ExtrasOneAnswer(html_info="", image=made)


@router.post("/extra-batch-images")
async def extra_batch_images(http: HttpRequest, asked: ExtrasBatch, service: CurrentService) -> ExtrasBatchAnswer:
    """Make some pictures larger."""
    sent = [each.data for each in asked.imageList]
    return ExtrasBatchAnswer(html_info="", images=await _in_turn(asked, sent, "imageList", service, http.state.key))


async def _in_turn(asked: Extras, sent: Sequence[str], param: str, service: Service, key: Key) -> list[str]:
    """Return enlarged pictures, after those that were asked for before; they count as images of the key.

    Raises QueueFullError for too many, and ApiError where the key may not have them now.
    """
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if value := getattr(asked, name):
            raise refusal(name, value, "there is no face restoration; leave it out")
    for name in ("upscaler_1", "upscaler_2"):
        known = [NONE, *RESAMPLED, *dict(service.settings.upscalers)]
        if (value := getattr(asked, name)) not in known:
            raise refusal(name, value, f"no upscaler of this server; {nearest(value, known)}")
    check_scale("upscaling_resize", asked.upscaling_resize)
    if service.enlarging >= MOST_WAITING:
        raise QueueFullError(service.enlarging, RETRY)

    service.quotas.check_number(key, len(sent), param)

    def make() -> list[str]:
        with service.metrics.charged(key):
            return [_made(asked, data, param, service) for data in sent]

    with service.quotas.counted(key, len(sent)):
        service.enlarging += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(WORKER, make)
        finally:
            service.enlarging -= 1


def _made(asked: Extras, data: str, param: str, service: Service) -> str:
    """Return an enlarged picture as a PNG file in base64. Raises InputError."""
    decoded = decode(data, param, service.settings.max_pixels)
    texts, picture = kept_texts(decoded), read_image(decoded, param)
    if asked.upscaler_1 != NONE:
        factor = asked.upscaling_resize
        if asked.resize_mode == TO:
            sides = asked.upscaling_resize_w, asked.upscaling_resize_h
            factor = max(wanted / own for wanted, own in zip(sides, picture.size, strict=True))
        size = scaled_size(picture.size, factor)
        made = _by(asked.upscaler_1, picture, size, service)
        if asked.upscaler_2 != NONE and (share := asked.extras_upscaler_2_visibility):
            made = Image.blend(made, _by(asked.upscaler_2, picture, size, service), share)
        picture = made
        if asked.resize_mode == TO and asked.upscaling_crop:
            picture = _cropped(picture, (asked.upscaling_resize_w, asked.upscaling_resize_h))
        texts["postprocessing"] = f"Postprocess upscale by: {factor:g}, Postprocess upscaler: {asked.upscaler_1}"
    return base64.b64encode(png_bytes(picture, None, texts=texts)).decode()


def _by(name: str, picture: Image.Image, size: Size, service: Service) -> Image.Image:
    most, argument = service.settings.max_pixels, "upscaling_resize"
    if name in RESAMPLED:
        return enlarged(picture, RESAMPLED[name], size, argument, most)
    check_pixels(picture.size, dict(service.settings.upscalers)[name], size, argument, most)
    return service.upscaled(name, picture, size)


def _cropped(picture: Image.Image, size: Size) -> Image.Image:
    """Return the middle of a picture, which is no smaller."""
    left, top = ((own - wanted) // 2 for own, wanted in zip(picture.size, size, strict=True))
    return picture.crop((left, top, left + size[0], top + size[1]))
