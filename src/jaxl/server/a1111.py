"""The API of AUTOMATIC1111's web UI, as Open WebUI, SillyTavern and webuiapi call it.

Names and meanings are those of its version 1.10 (https://github.com/AUTOMATIC1111/stable-diffusion-webui,
`modules/api`), with these differences. A field that is left out has the model's own value: its size, steps, guidance
and sampler. A field that asks for what jaxl lacks is refused by name rather than passed over. The web UI has one user;
here `progress`, `interrupt` and `skip` are about the requests of whoever asks, so that nobody sees or stops another's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends
from PIL import Image, ImageFilter, ImageOps, ImageStat
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest

from jaxl.diffusion.names import a1111_name, find_name
from jaxl.diffusion.tables import SCHEDULERS, SOLVERS
from jaxl.engine import Preview
from jaxl.errors import InputError
from jaxl.images import fit, overlay, read_image, read_mask
from jaxl.png import a1111_text
from jaxl.server.errors import ApiError, fields
from jaxl.server.openai import transparent
from jaxl.server.pictures import decode
from jaxl.server.service import CurrentService, Service, Stream
from jaxl.server.settings import Settings

# the arguments of `Pipeline.generate` that have other names here
FIELDS = {
    "scheduler": "sampler_name",
    "guidance_scale": "cfg_scale",
    "num_images": "batch_size",
    "image": "init_images",
    "strength": "denoising_strength",
    "padding_mask_crop": "inpaint_full_res_padding",
}
CLIP_SKIP = "CLIP_stop_at_last_layers"

# what a solver's schedule is there where nobody chooses one (`modules/sd_samplers_kdiffusion.py`)
AUTOMATIC: Mapping[str, str] = {
    "dpm++2m": "karras",
    "dpm++2m_sde": "exponential",
    "dpm++2s_a": "karras",
    "dpm++3m_sde": "exponential",
    "dpm++sde": "karras",
    "dpm2": "karras",
    "dpm2_a": "karras",
}
# of SDXL's text encoders the second-to-last layer is read; 1 asks for the last one of Stable Diffusion 1, which the web
# UI overrules for SDXL as well
USUAL_CLIP_SKIP, MAX_CLIP_SKIP = 2, 12
# how often each image is shown to those who ask for progress
PREVIEWS = 5
MAX_SETTINGS_LINE = 4000

# what jaxl lacks: fields that must be empty, false, zero or less, with what to do instead
LACKING: Mapping[str, str] = {
    "enable_hr": "there is no second pass; ask for the size you want, or send the picture to img2img",
    "refiner_checkpoint": "this server has one model; leave it out",
    "restore_faces": "there is no face restoration; leave it out",
    "tiling": "pictures that tile are not supported; leave it out",
    "styles": "no styles are kept here; write their texts into the prompt",
    "subseed_strength": "seeds are not blended; leave it out",
    "seed_resize_from_h": "seeds are not resized; leave it out",
    "seed_resize_from_w": "seeds are not resized; leave it out",
    "s_min_uncond": "the negative prompt is never skipped; leave it out",
    "script_name": "there are no scripts; leave it out",
    "infotext": "it is not read here; give its settings as fields",
    "latent_mask": "give the mask as mask",
}
# options of the web UI that change pictures, and the values that change nothing here
NEUTRAL_OPTIONS: Mapping[str, Sequence[Any]] = {
    "sd_vae": ("Automatic", "None"),
    "sd_hypernetwork": ("None",),
    "forge_additional_modules": ([],),
    "samples_format": ("png",),
    "eta_noise_seed_delta": (0,),
    "s_min_uncond": (0,),
    "token_merging_ratio": (0,),
    "tiling": (False,),
    "face_restoration": (False,),
    "img2img_color_correction": (False,),
    "initial_noise_multiplier": (1,),
}


class ErrorBody(BaseModel):
    error: str
    detail: str
    body: str
    errors: str


router = APIRouter(
    prefix="/sdapi/v1",
    tags=["A1111"],
    dependencies=[Depends(fields(FIELDS))],
    responses={
        "4XX": {"description": "The request cannot be drawn.", "model": ErrorBody},
        "5XX": {"description": "The server could not draw it.", "model": ErrorBody},
    },
)

Count = Annotated[int, Field(ge=1, le=1000)]
Side = Annotated[int, Field(ge=8, le=16384, multiple_of=8)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0, le=1e6)]
Flag = bool | None


class Asked(BaseModel):
    """What both ways to draw take; null is not given, and unknown fields are passed over."""

    model_config = ConfigDict(allow_inf_nan=False)

    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = Field(-1, ge=-1, lt=2**64, description="Counts up from image to image; -1 is random.")
    batch_size: Count | None = 1
    n_iter: Count | None = Field(1, description="Times `batch_size` gives the images.")
    steps: Count | None = None
    cfg_scale: float | None = Field(None, ge=0, le=100)
    width: Side | None = None
    height: Side | None = None
    sampler_name: str | None = Field(None, max_length=100)
    sampler_index: str | None = Field(None, max_length=100, description="Where there is no `sampler_name`.")
    scheduler: str | None = Field(None, max_length=100, description="The schedule type, such as Karras.")
    eta: Share | None = None
    s_churn: Positive | None = None
    s_tmin: Positive | None = None
    s_tmax: Positive | None = Field(None, description="0 is no limit.")
    s_noise: Positive | None = None
    override_settings: dict[str, Any] | None = None
    clip_skip: int | None = Field(
        None, ge=0, le=MAX_CLIP_SKIP, description="As SD.Next has it, like CLIP_stop_at_last_layers."
    )
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool = True
    enable_hr: Flag = None
    refiner_checkpoint: str | None = None
    restore_faces: Flag = None
    tiling: Flag = None
    styles: list[str] | None = None
    subseed_strength: float | None = None
    seed_resize_from_h: int | None = None
    seed_resize_from_w: int | None = None
    s_min_uncond: float | None = None
    script_name: str | None = None
    infotext: str | None = None
    initial_noise_multiplier: float | None = None


class Txt2Img(Asked):
    pass


class Img2Img(Asked):
    init_images: list[str] | None = Field(None, description="One PNG, JPEG or WebP picture in base64.")
    denoising_strength: Share | None = 0.75
    resize_mode: int | None = Field(0, ge=0, le=3, description="0 stretches the picture to the size, 1 crops it.")
    mask: str | None = Field(None, description="A picture of the same size, white where to paint anew.")
    mask_blur: float | None = Field(None, ge=0, le=256)
    mask_blur_x: float | None = Field(4, ge=0, le=256)
    mask_blur_y: float | None = Field(4, ge=0, le=256)
    inpainting_mask_invert: bool | None = False
    inpainting_fill: int | None = Field(0, ge=0, le=3, description="0: from the colours around; 1: from the picture.")
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: int | None = Field(0, ge=0, le=16384)
    include_init_images: bool = False
    latent_mask: str | None = None


class Drawn(BaseModel):
    """`images` are PNG files in base64, `info` is JSON, `parameters` what was asked."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(BaseModel):
    image: str


class Read(BaseModel):
    """The text in a PNG file, the other texts in it, and what the settings in it say."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class Progress(BaseModel):
    """Of the requests of whoever asks; `job_count` of `state` counts images."""

    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None
    textinfo: str | None


@dataclass(eq=False)
class Job:
    """A request that is being drawn, for an `owner`; `preview` is what was last seen of it."""

    owner: tuple[str, str]
    stream: Stream
    preview: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """The picture to start from, RGB, and the mask, L, white where it is painted anew."""

    picture: Image.Image
    mask: Image.Image | None


def owner_of(http: HttpRequest) -> tuple[str, str]:
    """Who asks, as far as a server can tell: an address and a key."""
    return http.client.host if http.client else "", http.headers.get("authorization", "")


def jobs_of(http: HttpRequest) -> list[Job]:
    """Those of whoever asks, the oldest first."""
    owner = owner_of(http)
    return [job for job in _all_jobs(http) if job.owner == owner]


Jobs = Annotated[list[Job], Depends(jobs_of)]


@router.post("/txt2img")
async def txt2img(http: HttpRequest, asked: Txt2Img, service: CurrentService) -> Drawn:
    """Draw pictures of a prompt."""
    return await _draw(http, service, asked, _arguments(asked, service.settings), None)


@router.post("/img2img")
async def img2img(http: HttpRequest, asked: Img2Img, service: CurrentService) -> Drawn:
    """Draw from a picture, or anew where a mask is white."""
    arguments = _arguments(asked, service.settings)
    source = await asyncio.to_thread(_source, asked, service.settings.max_pixels)
    arguments |= {"image": source.picture, "mask": source.mask, "strength": asked.denoising_strength}
    if source.mask is not None and asked.inpaint_full_res:
        arguments["padding_mask_crop"] = asked.inpaint_full_res_padding or 0
    else:
        given = service.checked(arguments)
        source = await asyncio.to_thread(_resized, source, asked.resize_mode or 0, given["width"], given["height"])
    start = source.picture
    if source.mask is not None and not asked.inpainting_fill:
        start = await asyncio.to_thread(filled, source.picture, source.mask)
    arguments |= {"image": start, "mask": source.mask}
    return await _draw(http, service, asked, arguments, source)


@router.get("/progress")
async def progress(service: CurrentService, jobs: Jobs, skip_current_image: bool = False) -> Progress:
    """How far the requests are that the caller has made."""
    tickets = [job.stream.ticket for job in jobs]
    statuses = [service.engine.status(ticket) for ticket in tickets]
    done, total = (sum(getattr(status, name) for status in statuses) for name in ("done", "total"))
    began = min((ticket.started for ticket in tickets if ticket.started is not None), default=None)
    eta = max((status.starts_in for status in statuses), default=0.0)
    if done and began is not None:
        eta = (time.monotonic() - began) * (total - done) / done
    waiting = min((status.position for status in statuses), default=0) if began is None else 0
    pixels = next((job.preview for job in jobs if job.preview is not None), None)
    shown = None if skip_current_image or pixels is None else await service.encode_preview(pixels, format="png")
    return Progress(
        progress=done / total if total else 0.0,
        eta_relative=eta,
        state={
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "",
            "job_count": sum(len(ticket.images) for ticket in tickets),
            "job_timestamp": _timestamp(),
            "job_no": sum(status.images for status in statuses),
            "sampling_step": done,
            "sampling_steps": total,
        },
        current_image=None if shown is None else base64.b64encode(shown).decode(),
        textinfo=f"{waiting} images of others are drawn first" if waiting else None,
    )


@router.post("/interrupt")
async def interrupt(jobs: Jobs) -> dict[str, Any]:
    """Cancel all requests that the caller has made."""
    for job in jobs:
        job.stream.ticket.cancel()
    return {}


@router.post("/skip")
async def skip(jobs: Jobs) -> dict[str, Any]:
    """Cancel the oldest request that the caller has made, and go on with the next."""
    for job in jobs[:1]:
        job.stream.ticket.cancel()
    return {}


@router.get("/options")
async def options(service: CurrentService) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": service.settings.model,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }


@router.post("/options")
async def set_options(wanted: dict[str, Any], service: CurrentService) -> None:
    """Nothing is kept, so that users do not change each other's pictures: what would have to be is refused."""
    if _overrides(wanted, service.settings):
        remedy = "options are not kept here; send it with each request, in override_settings"
        raise _refusal(CLIP_SKIP, wanted[CLIP_SKIP], remedy)


@router.get("/sd-models")
async def sd_models(service: CurrentService) -> list[dict[str, Any]]:
    name = service.settings.model
    return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]


@router.get("/samplers")
async def samplers(service: CurrentService) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in _offered(service.settings):
        solver = _solver(name)
        label, choice = a1111_name(solver)[0], AUTOMATIC.get(solver)
        item = {"name": label, "aliases": [solver], "options": {"scheduler": choice} if choice else {}}
        found.setdefault(label, item)
    return list(found.values())


@router.get("/schedulers")
async def schedulers(service: CurrentService) -> list[dict[str, Any]]:
    """The types of schedules."""
    names = dict.fromkeys(SCHEDULERS[name].sigma_schedule for name in _offered(service.settings))
    types = {"automatic": "Automatic", "uniform": "Uniform"} | {
        name: a1111_name(f"euler_{name}")[1] for name in names if name is not None
    }
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
        for name, label in types.items()
    ]


@router.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1.0}]


@router.get("/latent-upscale-modes")
@router.get("/sd-vae")
@router.get("/script-info")
@router.get("/loras")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
async def nothing() -> list[dict[str, Any]]:
    """Kinds of things that this server has none of."""
    return []


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings")
async def embeddings() -> dict[str, dict[str, Any]]:
    return {"loaded": {}, "skipped": {}}


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    return {}


@router.get("/memory")
async def memory() -> dict[str, dict[str, str]]:
    unknown = {"error": "not measured here; see /metrics"}
    return {"ram": unknown, "cuda": unknown}


@router.post("/refresh-checkpoints")
async def refresh_checkpoints() -> None:
    """There is one model, and it is loaded."""


@router.post("/png-info", dependencies=[Depends(fields({}))])
async def png_info(asked: PngInfo, service: CurrentService) -> Read:
    """The settings in a picture."""
    image = await asyncio.to_thread(decode, asked.image, "image", service.settings.max_pixels)
    texts = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
    text = texts.pop("parameters", "")
    return Read(info=text, items=texts, parameters=read_infotext(text))


async def _draw(
    http: HttpRequest, service: Service, asked: Asked, arguments: Mapping[str, Any], source: Source | None
) -> Drawn:
    """Draw, telling `progress` on the way; `source` is laid over what a mask leaves as it is."""
    jobs = _all_jobs(http)
    async with await service.submit(arguments, previews=PREVIEWS, id=http.state.request_id) as stream:
        job = Job(owner_of(http), stream)
        jobs.append(job)
        watch = asyncio.create_task(_cancel_when_gone(http, stream))
        try:
            async for event in stream:
                if isinstance(event, Preview):
                    job.preview = event.pixels
            result = await stream.result()
        finally:
            watch.cancel()
            jobs.remove(job)
    pictures = result.images
    if source is not None and source.mask is not None:
        pictures = [await asyncio.to_thread(_overlaid, source, picture) for picture in pictures]
    made = [
        service.settings_of(stream.arguments, picture, seed, result.scheduler)
        for picture, seed in zip(pictures, result.seeds, strict=True)
    ]
    files = []
    if asked.send_images:
        files = [await service.encode(picture, own) for picture, own in zip(pictures, made, strict=True)]
    unsaid = {"override_settings", "alwayson_scripts"}  # which may hold what JSON cannot
    if isinstance(asked, Img2Img) and not asked.include_init_images:
        unsaid |= {"init_images", "mask"}
    return Drawn(
        images=[base64.b64encode(file).decode() for file in files],
        parameters=asked.model_dump(exclude=unsaid),
        info=json.dumps(_info(made, result.seeds, asked)),
    )


async def _cancel_when_gone(http: HttpRequest, stream: Stream) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    stream.ticket.cancel()


def _all_jobs(http: HttpRequest) -> list[Job]:
    state = http.app.state
    if not hasattr(state, "a1111_jobs"):
        state.a1111_jobs = []
    return state.a1111_jobs


def _arguments(asked: Asked, settings: Settings) -> dict[str, Any]:
    """Those of `Pipeline.generate`. Raises ApiError for what jaxl lacks."""
    for name, remedy in LACKING.items():
        if _is_asked(value := getattr(asked, name, None)):
            raise _refusal(name, value, remedy)
    for name, script in (asked.alwayson_scripts or {}).items():
        if _is_on(script):
            raise _refusal("alwayson_scripts", name, "there is no such script; leave it out")
    if asked.initial_noise_multiplier not in (None, 1):
        raise _refusal("initial_noise_multiplier", asked.initial_noise_multiplier, "noise is not scaled; leave it out")
    batch, times = asked.batch_size or 1, asked.n_iter or 1
    if batch * times > settings.max_images:
        name, value = max(("batch_size", batch), ("n_iter", times), key=lambda pair: pair[1])
        raise _refusal(name, value, f"{batch * times} images in all; ask for at most {settings.max_images}")
    scheduler = scheduler_of(asked.sampler_name or asked.sampler_index, asked.scheduler, settings.scheduler)
    churns = bool(asked.s_churn)
    skip = {} if asked.clip_skip is None else _clip_skip("clip_skip", asked.clip_skip)
    return {
        "prompt": asked.prompt or "",
        "negative_prompt": asked.negative_prompt or None,  # an empty one is zeros in SDXL there too
        "seed": secrets.randbelow(2**32) if asked.seed in (None, -1) else asked.seed,
        "num_images": batch * times,
        "steps": asked.steps,
        "guidance_scale": asked.cfg_scale,
        "width": asked.width,
        "height": asked.height,
        "scheduler": scheduler,
        # there a sampler that adds no noise takes it, and goes without
        "eta": asked.eta if scheduler is None or SCHEDULERS[scheduler].eta is not None else None,
        "s_churn": asked.s_churn or None,
        "s_tmin": asked.s_tmin if churns else None,
        "s_tmax": (asked.s_tmax or None) if churns else None,
        "s_noise": None if asked.s_noise == 1 else asked.s_noise,
        **skip,
        **_overrides(asked.override_settings or {}, settings),
    }


def scheduler_of(sampler: str | None, schedule: str | None, default: str) -> str | None:
    """The full name of a scheduler for a sampler and a type of schedule of the web UI; None if neither is chosen.

    Raises InputError for the sampler and ApiError for the schedule. `default` is for a schedule alone.
    """
    kind = (schedule or "automatic").strip().lower()
    if sampler is None and kind == "automatic":
        return None
    solvers = {name: solver.schedules for name, solver in SOLVERS.items()}
    name = find_name(sampler or default, solvers)
    solver = _solver(name)
    if kind == "automatic":
        choice = AUTOMATIC.get(name)
        return f"{name}_{choice}" if choice else name
    if kind in ("uniform", "normal"):
        return solver
    try:
        full = find_name(f"{solver} {kind}", solvers)
    except InputError:
        full = solver
    if full == solver or _solver(full) != solver:
        labels = ", ".join(a1111_name(f"{solver}_{each}")[1] for each in solvers[solver])
        raise _refusal("scheduler", schedule, f"with {solver}, known: Automatic, Uniform, {labels}")
    return full


def _solver(name: str) -> str:
    return name.removesuffix(f"_{SCHEDULERS[name].sigma_schedule}")


def _offered(settings: Settings) -> Sequence[str]:
    return settings.schedulers or tuple(SCHEDULERS)


def _is_asked(value: Any) -> bool:
    """Whether a field that jaxl lacks has a value that would do something."""
    return bool(value) and value != "None" and not (isinstance(value, int | float) and value < 0)


def _is_on(script: Any) -> bool:
    """Whether a script is to do something: clients send those that they know, turned off."""
    args = script.get("args") if isinstance(script, dict) else script
    units = args if isinstance(args, list) else [args]
    off = all(not unit or (isinstance(unit, dict) and unit.get("enabled") is False) for unit in units)
    return not off and units[0] is not False


def _overrides(options: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The arguments of `Pipeline.generate` that options of the web UI stand for. Raises ApiError."""
    for name, value in options.items():
        neutral = NEUTRAL_OPTIONS.get(name)
        if neutral is not None and value not in (None, "", *neutral):
            raise _refusal(name, value, f"it cannot be chosen here; leave it out, or give {neutral[0]!r}")
    model = options.get("sd_model_checkpoint")
    if model not in (None, "", settings.model, f"{settings.model}.safetensors"):
        raise ApiError(
            404,
            f"sd_model_checkpoint: the model {str(model)[:200]!r} is not here; this server has {settings.model!r}",
            param="sd_model_checkpoint",
            code="model_not_found",
        )
    return {} if options.get(CLIP_SKIP) is None else _clip_skip(CLIP_SKIP, options[CLIP_SKIP])


def _clip_skip(name: str, value: Any) -> dict[str, int]:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_CLIP_SKIP:
        raise _refusal(name, value, f"give a whole number from 1 to {MAX_CLIP_SKIP}")
    return {"clip_skip": value - USUAL_CLIP_SKIP} if value > USUAL_CLIP_SKIP else {}


def _refusal(name: str, value: Any, remedy: str) -> ApiError:
    return ApiError(422, str(InputError(name, value, remedy)), param=name)


def _source(asked: Img2Img, max_pixels: int) -> Source:
    given = asked.init_images or []
    if len(given) != 1:
        raise _refusal("init_images", f"{len(given)} pictures", "give one")
    picture = read_image(decode(given[0], "init_images", max_pixels), "init_images")
    if not asked.mask:
        return Source(picture, None)
    if asked.inpainting_fill not in (None, 0, 1):
        raise _refusal("inpainting_fill", asked.inpainting_fill, "give 0, the colours around, or 1, the picture")
    mask = decode(asked.mask, "mask", max_pixels)
    if asked.inpainting_mask_invert:
        mask = transparent(mask) or ImageOps.invert(read_image(mask, "mask").convert("L"))
    blur = (asked.mask_blur_x or 0, asked.mask_blur_y or 0) if asked.mask_blur is None else asked.mask_blur
    mask = read_mask(mask, "mask", picture.size)
    # black and white before the blur, as there
    return Source(picture, mask.point([0] * 128 + [255] * 128).filter(ImageFilter.GaussianBlur(blur)))


def _resized(source: Source, mode: int, width: int, height: int) -> Source:
    """What a picture of another aspect is cut to, if it is; the pipeline stretches the rest."""
    picture = source.picture
    if mode == 0 or (picture.width * height == picture.height * width and mode != 3):
        return source
    if mode != 1:
        raise _refusal("resize_mode", mode, "give 0 to stretch the picture, or 1 to crop it")
    cut = [None if each is None else ImageOps.fit(each, (width, height)) for each in (picture, source.mask)]
    return Source(cut[0] or picture, cut[1])


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture with the colours around the white part of a mask in there: blurs of the rest, wide ones first."""
    kept = ImageOps.invert(mask)
    if not kept.getbbox():
        return picture
    colours = Image.new("RGBA", picture.size, tuple(round(mean) for mean in ImageStat.Stat(picture, kept).mean))
    rest = picture.convert("RGBA")
    rest.putalpha(kept)
    for share in (4, 16, 64, 256):
        radius = max(picture.size) / share
        # premultiplied, so that what is masked has no say
        colours.alpha_composite(rest.convert("RGBa").filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return overlay(mask, picture, colours.convert("RGB"))


def _overlaid(source: Source, picture: Image.Image) -> Image.Image:
    assert source.mask is not None
    return overlay(fit(source.mask, *picture.size), fit(source.picture, *picture.size), picture)


def _info(made: Sequence[Mapping[str, Any]], seeds: Sequence[int], asked: Asked) -> dict[str, Any]:
    """What `Processed.js` of the web UI says of images; `made` are their settings."""
    first, count = made[0], len(made)
    negative = first.get("negative_prompt", "")
    return {
        "prompt": first["prompt"],
        "all_prompts": [first["prompt"]] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": first["width"],
        "height": first["height"],
        "sampler_name": a1111_name(first["scheduler"])[0],
        "cfg_scale": first["guidance_scale"],
        "steps": first["steps"],
        "batch_size": asked.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first["model"],
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.get("strength"),
        "extra_generation_params": {"Schedule type": a1111_name(first["scheduler"])[1]},
        "index_of_first_image": 0,
        "infotexts": [a1111_text(own) for own in made],
        "styles": [],
        "job_timestamp": _timestamp(),
        "clip_skip": first.get("clip_skip", 0) + USUAL_CLIP_SKIP,
        "is_using_inpainting_conditioning": False,
        "version": f"jaxl {first['version']}",
    }


def _timestamp() -> str:
    return time.strftime("%Y%m%d%H%M%S")


_PAIR = re.compile(r'([^:,"]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, ?|$)')


def read_infotext(text: str) -> dict[str, str]:
    """What the `parameters` text of a picture says, under the names in it, and "Prompt" and "Negative prompt"."""
    lines = text.strip().splitlines()
    pairs = _pairs(lines[-1]) if lines else {}
    if pairs:
        lines.pop()
    start = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:").strip()
    return {"Prompt": "\n".join(lines[:start]).strip(), "Negative prompt": negative, **pairs} if lines or pairs else {}


def _pairs(line: str) -> dict[str, str]:
    """The pairs of a line of settings; none if it is another line: there are at least three."""
    found, place = {}, 0
    while place < len(line) <= MAX_SETTINGS_LINE:
        match = _PAIR.match(line, place)
        if match is None:
            return {}
        name, value = match.groups()
        found[name.strip()] = _unquoted(value)
        place = match.end()
    return found if len(found) >= 3 else {}


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
