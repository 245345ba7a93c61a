"""OpenAI's images API with jaxl's additions: https://platform.openai.com/docs/api-reference/images.

Fields that OpenAI's models have and jaxl lacks may pass where they ask for nothing that a picture could show; otherwise
they are refused.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, UploadFile
from PIL import Image, ImageChops, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from jaxl.call.options import DrawOptions
from jaxl.call.sizes import read_size
from jaxl.engine import Drawn, Preview, Progress, Result, Status
from jaxl.errors import InputError
from jaxl.server import logs
from jaxl.server.controls import ControlFields, read_controls
from jaxl.server.edits import SEAM, Source, transparent
from jaxl.server.errors import RESPONSES, ApiError, fields
from jaxl.server.events import EventStream, event, file_url, with_status
from jaxl.server.guard import FORM as FORM_TYPE
from jaxl.server.guard import JSON, media_type
from jaxl.server.hires import AskedHires
from jaxl.server.image_prompts import ImagePromptFields, read_image_prompts
from jaxl.server.jobs.routes import JobRoute, accept, is_job, wants_job
from jaxl.server.kept import SECONDS
from jaxl.server.limits import (
    Blur,
    Count,
    Delta,
    FreeUScales,
    GuidanceScale,
    Interval,
    Loras,
    Momentum,
    Name,
    Pixels,
    PlaceAndNumber,
    Proportion,
    Seed,
    Side,
    WidthAndHeight,
)
from jaxl.server.openai.fields import PictureUrl, PictureUrls
from jaxl.server.pictures import MEDIA_TYPES, decode
from jaxl.server.preprocess import in_turn
from jaxl.server.regions import RegionFields, read_regions
from jaxl.server.service import LEAST_DEADLINE, CurrentService, Service, Stream, know_models
from jaxl.server.sizes import Policy, as_text
from jaxl.server.work import AnswerFiles
from jaxl.text.prompt import Syntax

# the arguments of `Pipeline.generate` that have other names here
FIELDS = {"num_images": "n", "steps": "num_inference_steps", "width": "size", "height": "size"}

# OpenAI's models whose answers point to pictures, unless asked not to
URL_MODELS = "dall-e-"
# qualities in events, for those that only older models know
QUALITIES = {"auto": "auto", "standard": "auto", "hd": "high"}

# styles of OpenAI's own, which clients send by themselves and are nothing here
OPENAI_STYLES = ("vivid", "natural")

# there are no tokens to pay for, but OpenAI's event has the field
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}

# pixels around a mask; pictures have fewer
MAX_PADDING = 16384

router = APIRouter(
    prefix="/v1",
    tags=["OpenAI"],
    dependencies=[Depends(know_models), Depends(fields(FIELDS))],
    responses=RESPONSES,
    route_class=JobRoute,
)

FORM = Form(media_type=FORM_TYPE)

# the content with `stream`
DRAWN: dict[int | str, dict[str, Any]] = {200: {"content": {EventStream.media_type: {}}}}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in MEDIA_TYPES.values()}}}


class ImageRequest(BaseModel):
    """The fields of all routes; null counts as not given. From `negative_prompt` on they are jaxl's own."""

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1, description="Images; at most 10, unless the server was told otherwise.")
    size: str | None = Field(None, pattern=r"^(auto|[0-9]{1,6}x[0-9]{1,6})$", description="WIDTHxHEIGHT, or auto.")
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="Of each image, with `stream`.")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="The quality of JPEG and WebP.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = None
    negative_prompt: str | None = None
    num_inference_steps: Count | None = None
    guidance_scale: GuidanceScale | None = None
    guidance_rescale: Proportion | None = None
    apg_eta: Proportion | None = None
    apg_threshold: GuidanceScale | None = None
    apg_momentum: Momentum | None = None
    cfg_zero: Proportion | None = None
    cfg_zero_steps: Count | None = None
    mimic_scale: GuidanceScale | None = None
    mimic_percentile: Proportion | None = None
    perp_neg_scale: GuidanceScale | None = None
    guidance_interval: Interval | None = None
    pag_scale: GuidanceScale | None = None
    seg_scale: GuidanceScale | None = None
    seg_blur: Blur | None = None
    freeu: FreeUScales | None = None
    cache_interval: Count | None = None
    step_interval: Count | None = None
    speed: Literal["exact", "balanced", "fast"] | None = None
    seed: Seed | None = Field(None, description="Of the first image; random by default, or -1.")
    noise: Name | None = Field(None, description="Whose the seed is: jaxl, torch, nv, cuda, cuda:t4 and so on.")
    style: Name | None = Field(None, description="Draw as a1111, forge, comfyui, diffusers, invokeai or swarmui does.")
    step_noise: Name | None = Field(None, description="The same for the noise of steps; by default as noise.")
    sde_noise: Literal["brownian", "brownian_run", "draws"] | None = None
    eta_noise_seed_delta: Delta | Literal["inverted"] | None = Field(
        None, description="Steps draw from the seed and this."
    )
    variation_seed: Seed | None = Field(None, ge=0, description="Of the first image; then `seed` does not count up.")
    variation_strength: Proportion | None = Field(None, description="How much of the noise is that of variation_seed.")
    seed_resize_from: WidthAndHeight | None = None
    noise_batch: PlaceAndNumber | None = None
    scheduler: Name | None = None
    eta: Proportion | None = None
    clip_skip: int | None = Field(None, ge=0, le=100)
    loras: Loras | None = None
    controls: ControlFields | None = None
    image_prompts: ImagePromptFields | None = None
    hires: AskedHires | None = None
    refiner: str | None = Field(None, description="A model of the server that draws the last steps.")
    refiner_at: Proportion | None = Field(None, description="Where it takes over, in shares of the noise levels; 0.8.")
    regions: RegionFields | None = None
    seamless: Literal["x", "y", "xy"] | None = Field(None, description="Copies beside each other have no seam.")
    tile_size: Side | None = Field(None, description="Draw larger pictures in tiles of so many pixels.")
    tile_overlap: Pixels | None = Field(None, description="Pixels that tiles share; a quarter of their size.")
    prompt_syntax: Syntax | None = Field(None, description="literal by default.")
    previews: int | None = Field(
        None, ge=0, le=100, description="Like partial_images, and for /v1/requests/{id}/events too."
    )
    progress: bool | None = Field(None, description="With `stream`, events of the place in the queue and of each step.")
    priority: int | None = Field(None, ge=-10, le=10, description="Each step is worth ten seconds of waiting.")
    deadline: float | None = Field(None, ge=LEAST_DEADLINE, allow_inf_nan=False, description="Seconds to be done in.")
    size_policy: Policy | None = Field(None, description="Whether a size that is not drawn is scaled to, or refused.")
    keep: bool | None = Field(None, description="Draw on when the client is gone; /v1/requests/{id} has the pictures.")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        """Return the fields without those that a client's form leaves empty, and OpenAI's own styles."""
        if not isinstance(fields, dict):
            return fields
        given = {name: value for name, value in fields.items() if value != "" or name in logs.TEXTS}
        if given.get("style") in OPENAI_STYLES:
            del given["style"]
        return given

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Pipeline.generate`."""
        width, height = read_size(self.size or "auto") or (None, None)
        return {
            "prompt": self.prompt,
            "num_images": self.n,
            "width": width,
            "height": height,
            "steps": self.num_inference_steps,
            # the others have the names that they have there
            **{name: getattr(self, name) for name in ImageRequest.model_fields if name in DrawOptions.__annotations__},
            "hires": None if self.hires is None else self.hires.read(),
            "refiner": self.refiner,
            "refiner_at": self.refiner_at,
        }


class Generation(ImageRequest):
    """The body of `/v1/images/generations`."""

    model_config = ConfigDict(strict=True)


class Sent(ImageRequest):
    """The fields of forms with a picture."""

    prompt: str = ""  # FastAPI takes an empty field for a missing one
    image: list[UploadFile] = Field([], description="PNG, JPEG or WebP.")
    images: list[UploadFile] = Field([], alias="image[]", description="The same, as some clients call it.")
    strength: Proportion | None = Field(None, description="How much changes; 0.6, or 1 with a mask.")


class Masked(BaseModel):
    """The fields that go with a mask."""

    mask_blur: float | None = Field(
        None, ge=0, le=256, description="Pixels over which what a mask leaves goes over into what is drawn; 4."
    )
    padding_mask_crop: int | None = Field(
        None, ge=0, le=MAX_PADDING, description="Draw only what a mask paints, larger, with this many pixels around it."
    )


class Edit(Sent, Masked):
    """The form of `/v1/images/edits`."""

    mask: UploadFile | None = Field(None, description="A picture of the same size, transparent where to paint anew.")


class EditInJson(ImageRequest, Masked):
    """The body of `/v1/images/edits`, where it is no form."""

    model_config = ConfigDict(strict=True)

    image: PictureUrls = []
    images: PictureUrls = Field([], description="The same, as OpenAI calls it in JSON.")
    mask: PictureUrl | None = Field(None, description="A picture of the same size, transparent where to paint anew.")
    strength: Proportion | None = Field(None, description="How much changes; 0.6, or 1 with a mask.")


class Variation(Sent):
    """The form of `/v1/images/variations`."""


class JsonRoute(JobRoute):
    """A route for bodies in JSON, before one of the same path for others."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return (match, found) if media_type(Headers(scope=scope)) == JSON else (Match.NONE, {})


# the schema describes a path once: the form, with this beside it
IN_JSON = {"requestBody": {"content": {JSON: {"schema": {"$ref": f"#/components/schemas/{EditInJson.__name__}"}}}}}


@router.post("/images/generations", response_model=None, responses=DRAWN)
async def generate(http: HttpRequest, asked: Generation, service: CurrentService) -> Response | dict[str, Any]:
    """Draw pictures of a prompt."""
    check(asked, service)
    return await _respond(http, service, asked, asked.arguments(), "image_generation")


async def edit_in_json(http: HttpRequest, asked: EditInJson, service: CurrentService) -> Response | dict[str, Any]:
    """`edit` with pictures as data URLs."""
    return await _edit(http, asked, asked.image + asked.images, asked.mask, service)


router.add_api_route(
    "/images/edits", edit_in_json, methods=["POST"], response_model=None, route_class_override=JsonRoute
)


@router.post("/images/edits", response_model=None, responses=DRAWN, openapi_extra=IN_JSON)
async def edit(http: HttpRequest, asked: Annotated[Edit, FORM], service: CurrentService) -> Response | dict[str, Any]:
    """Draw anew where a mask, or else the picture itself, is transparent; without either, change all of a picture."""
    if not asked.prompt:
        raise InputError(
            "prompt", "", "empty or missing; say what to draw, or ask /v1/images/variations for others like it"
        )
    return await _edit(http, asked, asked.image + asked.images, asked.mask, service)


@router.post("/images/variations", response_model=None, responses=DRAWN)
async def vary(
    http: HttpRequest, asked: Annotated[Variation, FORM], service: CurrentService
) -> Response | dict[str, Any]:
    """Change all of a picture, without a prompt unless there is one."""
    check(asked, service)
    image = await _read_only(asked.image + asked.images, service)
    start = {"image": image.convert("RGB"), "strength": asked.strength}
    return await _respond(http, service, asked, {**asked.arguments(), **start}, "image_edit")


@router.get("/images/files/{name}", response_class=Response, responses=PICTURE)
async def picture_file(name: str, service: CurrentService) -> Response:
    """A picture to which an answer pointed, for an hour. Its name is a secret, so that no key is needed."""
    file = service.files.get(name)
    if file is None:
        raise ApiError(404, "no such picture is kept here any more; draw it again", code="picture_not_found")
    return Response(file.data, media_type=file.media_type, headers={"Cache-Control": f"private, max-age={SECONDS:.0f}"})


@router.get("/models")
async def models(service: CurrentService) -> dict[str, Any]:
    """The models of this server, under each of their names."""
    return {"object": "list", "data": [_model(name, service) for name in service.model_names]}


@router.get("/models/{model:path}")
async def model(model: str, service: CurrentService) -> dict[str, Any]:
    service.model_named(model)
    return _model(model, service)


def check(asked: ImageRequest, service: Service) -> None:
    """Raise ApiError or InputError for a request that this server cannot fulfil."""
    service.model_named(asked.model)
    if asked.response_format == "url" and asked.stream:
        raise InputError(
            "response_format", "url", "events have the pictures themselves; leave out one of it and stream"
        )
    for name, value, remedy in (
        ("response_format", asked.response_format == "url" and "url", "ask for b64_json"),
        ("keep", asked.keep, "leave it out"),
    ):
        if value and not service.settings.urls:
            raise InputError(name, value, f"no picture is kept here; {remedy}")
    if asked.background == "transparent":
        raise InputError("background", "transparent", "the model draws opaque pictures; leave it out")
    if asked.output_compression not in (None, 100) and asked.output_format in (None, "png"):
        remedy = "PNG loses nothing; set output_format to jpeg or webp"
        raise InputError("output_compression", asked.output_compression, remedy)


async def _edit(
    http: HttpRequest,
    asked: Edit | EditInJson,
    pictures: Sequence[UploadFile | str],
    masked: UploadFile | str | None,
    service: Service,
) -> Response | dict[str, Any]:
    check(asked, service)
    arguments, source = await edit_of(asked, pictures, masked, service)
    return await _respond(http, service, asked, arguments, "image_edit", source)


async def edit_of(
    asked: Edit | EditInJson,
    pictures: Sequence[UploadFile | str],
    masked: UploadFile | str | None,
    service: Service,
) -> tuple[dict[str, Any], Source]:
    """Return the arguments of `Pipeline.generate`, and the source to lay over the parts kept. Raises InputError."""
    image = await _read_only(pictures, service)
    mask = transparent(image if masked is None else await _read(masked, "mask", service))
    if masked is not None and mask is None:
        raise InputError("mask", "an opaque picture", "make it transparent where to paint anew")
    # the rest of the picture stays as it is, and a blurred seam hides the edge
    blur = SEAM if asked.mask_blur is None else asked.mask_blur
    seam = None if mask is None else mask.filter(ImageFilter.GaussianBlur(blur))
    crop = asked.padding_mask_crop
    # with a crop the pipeline itself puts the part back, so it needs the seam
    soft = mask if crop is None or mask is None or seam is None else ImageChops.lighter(mask, seam)
    picture = image if masked is None else image.convert("RGB")
    start = {"image": picture, "mask": soft, "strength": asked.strength, "padding_mask_crop": crop}
    return {**asked.arguments(), **start}, Source(image.convert("RGB"), seam)


async def _read_only(pictures: Sequence[UploadFile | str], service: Service) -> Image.Image:
    if len(pictures) != 1:
        raise InputError("image", f"{len(pictures)} pictures", "send one")
    return await _read(pictures[0], "image", service)


async def _read(picture: UploadFile | str, param: str, service: Service) -> Image.Image:
    data = picture if isinstance(picture, str) else await picture.read()

    def upright() -> Image.Image:
        image = decode(data, param, service.settings.max_pixels)
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # damaged metadata raises all kinds of errors
            raise InputError(param, f"{len(data)} bytes", "its EXIF data is damaged; save it without") from None

    return await asyncio.to_thread(upright)


async def begin(
    http: HttpRequest, service: Service, asked: ImageRequest, arguments: dict[str, Any], source: Source | None = None
) -> AnswerFiles:
    """Submit a request; the caller follows its stream. `source` is laid over the parts that a mask keeps."""
    arguments = await _with_pictures(arguments, asked, service)
    return _work(service, await service.begin(http, arguments, **_how(asked, service)), asked, source)


async def draw(
    http: HttpRequest, service: Service, asked: ImageRequest, arguments: dict[str, Any], source: Source | None = None
) -> tuple[AnswerFiles, Result]:
    """Submit a request as `begin` does, and wait for its end, or until the client is gone."""
    arguments = await _with_pictures(arguments, asked, service)
    async with service.attended(http, arguments, **_how(asked, service)) as stream:
        work = _work(service, stream, asked, source)
        return work, await stream.result()


async def _with_pictures(arguments: dict[str, Any], asked: ImageRequest, service: Service) -> dict[str, Any]:
    """Return the arguments with the pictures that a request's images follow and are to be like, and their regions."""
    most, found = service.settings.max_pixels, {**arguments, "model": asked.model}
    if asked.controls:
        found["controls"] = await in_turn(read_controls, asked.controls, most)
    if asked.image_prompts:
        found["image_prompts"] = await in_turn(read_image_prompts, asked.image_prompts, most)
    if asked.regions:
        found["regions"] = await in_turn(read_regions, asked.regions, most)
    return found


def _how(asked: ImageRequest, service: Service) -> dict[str, Any]:
    previews = asked.previews if asked.previews is not None else asked.partial_images if asked.stream else None
    return {
        "previews": previews or 0,
        "priority": asked.priority,
        "deadline": asked.deadline,
        "keep": bool(asked.keep),
        "policy": _policy(asked, service),
    }


def _policy(asked: ImageRequest, service: Service) -> Policy:
    return service.policy("strict", asked.model, asked.size_policy)


def _work(service: Service, stream: Stream, asked: ImageRequest, source: Source | None) -> AnswerFiles:
    work = AnswerFiles(service, stream, source, asked.output_format or "png", asked.output_compression)
    if asked.keep:
        work.keep()
    return work


async def _respond(
    http: HttpRequest,
    service: Service,
    asked: ImageRequest,
    arguments: dict[str, Any],
    kind: Literal["image_generation", "image_edit"],
    source: Source | None = None,
) -> Response | dict[str, Any]:
    """Draw, and answer at the end, or with events on the way; or accept a job that is drawn later."""
    if wants_job(http):
        return await accept(
            http,
            service,
            await _with_pictures(arguments, asked, service),
            priority=asked.priority,
            policy=_policy(asked, service),
            deadline=asked.deadline,
            refused={
                "stream": asked.stream,
                "keep": asked.keep,
                "response_format": "url" if asked.response_format == "url" else None,
            },
        )
    if is_job(http):
        arguments = {**arguments, "seed": http.state.job.seed}
    if asked.stream:
        work = await begin(http, service, asked, arguments, source)
        return EventStream(_events(asked, work, kind), owner=work.stream)
    work, result = await draw(http, service, asked, arguments, source)
    data = []
    for image, drawn in enumerate(result.images):
        if _wants_urls(asked, service) and not is_job(http):
            file = {"url": file_url(http, await work.name(image, drawn))}
        else:
            file = {"b64_json": await base64_of(work, image, drawn)}
        data.append({**file, "seed": result.seeds[image], **_filtered(work, image)})
    return {"id": http.state.request_id, "created": int(time.time()), "data": data, **_shape(work, result.images[0])}


async def _events(asked: ImageRequest, work: AnswerFiles, kind: str) -> AsyncIterator[bytes]:
    service, stream = work.service, work.stream
    shape = _shape(work)
    shape["quality"] = QUALITIES.get(asked.quality or "auto", asked.quality)
    shown: Counter[int] = Counter()
    async for news in with_status(stream, service):
        match news:
            case Status(position=position, starts_in=starts_in):
                name, more = f"{kind}.queued", {"position": position, "starts_in": starts_in}
            case Progress(image=image, done=done, total=total):
                name, more = f"{kind}.progress", {"image_index": image, "done": done, "total": total}
            case Preview(image=image, pixels=pixels):
                name = f"{kind}.partial_image"
                data = await service.encode_preview(pixels, format=work.format, quality=work.quality)
                more = {"image_index": image, "partial_image_index": shown[image], **shape}
                more["b64_json"] = base64.b64encode(data).decode()
                shown[image] += 1
            case Drawn(image=image, picture=drawn):
                name = f"{kind}.completed"
                data = await base64_of(work, image, drawn)
                more = {"image_index": image, **shape, **_shape(work, drawn), "b64_json": data, "usage": USAGE}
                more |= {"seed": stream.ticket.seeds[image], **_filtered(work, image)}
            case _:
                continue
        if asked.progress or isinstance(news, Preview | Drawn):
            yield event(name, {"type": name, "created_at": int(time.time()), **more})
    await stream.result()  # raises its error, if it has one


def _wants_urls(asked: ImageRequest, service: Service) -> bool:
    """Return whether an answer points to its pictures: if asked to, and by default for OpenAI's models that do."""
    if asked.response_format is None:
        return service.settings.urls and (asked.model or "").startswith(URL_MODELS)
    return asked.response_format == "url"


def _shape(work: AnswerFiles, drawn: Image.Image | None = None) -> dict[str, Any]:
    """Return the fields of an answer about its pictures; before one is `drawn`, those it is going to have."""
    size = as_text(work.stream.wanted if drawn is None else work.size(drawn))
    shape = {"background": "opaque", "output_format": work.format, "size": size}
    return {**shape, "drawn_size": as_text(work.stream.drawn)} if work.resized else shape


def _filtered(work: AnswerFiles, image: int) -> dict[str, str]:
    return {"filtered": "blur"} if image in work.blurred else {}


async def base64_of(work: AnswerFiles, image: int, drawn: Image.Image) -> str:
    """Return the file of an image, by its index in the request."""
    return base64.b64encode((await work.file(image, drawn)).data).decode()


def _model(name: str, service: Service) -> dict[str, Any]:
    root = service.model_named(name)
    return {"id": name, "object": "model", "created": service.created, "owned_by": "jaxl", "root": root}
