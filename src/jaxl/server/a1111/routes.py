"""The API of AUTOMATIC1111's web UI, as Open WebUI, SillyTavern and webuiapi call it.

Names and meanings are those of its version 1.10 (https://github.com/AUTOMATIC1111/stable-diffusion-webui,
`modules/api`), with these differences. A field that is left out has the model's own value: its size, steps, guidance
and sampler. A field that asks for what jaxl lacks is refused by name rather than passed over. The web UI has one user;
here `progress`, `interrupt` and `skip` are about the caller's own requests, so that nobody sees or stops another's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends
from PIL import Image
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest

from jaxl.call.hires import a1111_upscaler
from jaxl.call.hires_texts import STRENGTH, hires_texts
from jaxl.call.infotext import a1111_text, lora_hashes, read_a1111_text, refiner_texts, text_of
from jaxl.call.interpolation import MODES
from jaxl.diffusion.names import AUTOMATIC, CHECKPOINT, a1111_name
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.engine import Preview
from jaxl.engine.backend import Served
from jaxl.errors import InputError
from jaxl.server.a1111.controlnet import SCRIPT as CONTROLNET
from jaxl.server.a1111.controlnet import units_of, with_units
from jaxl.server.a1111.fields import (
    FIELDS,
    A1111Request,
    Img2Img,
    Txt2Img,
    edit_of,
    offered,
    solver_of,
    txt2img_arguments,
    with_styles,
)
from jaxl.server.a1111.options import CLIP_SKIP, MODEL, USUAL_CLIP_SKIP, overrides, refusal
from jaxl.server.a1111.tiled_diffusion import SCRIPT as TILED_DIFFUSION
from jaxl.server.edits import Source
from jaxl.server.errors import A1111_RESPONSES, ApiError, fields
from jaxl.server.loras import AsciiResponse, read_metadata
from jaxl.server.pictures import decode
from jaxl.server.preprocess import encoded, in_turn
from jaxl.server.service import CurrentService, Service, Stream, know_models
from jaxl.server.work import AnswerFiles

# how many previews of each image `progress` can show
PREVIEWS = 5
# whose choice of a model is remembered
MOST_CALLERS = 1000

# routes that jaxl lacks, and why
LACKING: Mapping[str, str] = {
    "interrogate": "pictures are not described",
    **dict.fromkeys(
        ("create/embedding", "create/hypernetwork", "train/embedding", "train/hypernetwork"), "nothing is trained"
    ),
    **dict.fromkeys(("server-kill", "server-restart", "server-stop"), "whoever has started the server ends it"),
}

router = APIRouter(
    prefix="/sdapi/v1",
    tags=["A1111"],
    dependencies=[Depends(know_models), Depends(fields(FIELDS))],
    responses=A1111_RESPONSES,
)


class ImagesAnswer(BaseModel):
    """`images` are PNG files in base64, `info` is JSON, `parameters` what was asked."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(BaseModel):
    image: str


class Read(BaseModel):
    """The text in a picture's file, the other texts in it, and what the settings in it say."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class ProgressAnswer(BaseModel):
    """The progress of the caller's requests; `job_count` of `state` counts images."""

    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None
    textinfo: str | None


@dataclass(eq=False)
class Job:
    """A request that is being drawn, for an `owner`, and its last `preview`."""

    owner: tuple[str, str]
    stream: Stream
    preview: np.ndarray | None = None


def owner_of(http: HttpRequest) -> tuple[str, str]:
    """Return the caller, as far as a server can tell: an address and a key."""
    return http.client.host if http.client else "", http.headers.get("authorization", "")


def jobs_of(http: HttpRequest) -> list[Job]:
    """Return the caller's jobs, the oldest first."""
    owner = owner_of(http)
    return [job for job in _all_jobs(http) if job.owner == owner]


Jobs = Annotated[list[Job], Depends(jobs_of)]


@router.post("/txt2img")
async def txt2img(http: HttpRequest, asked: Txt2Img, service: CurrentService) -> ImagesAnswer:
    """Draw pictures of a prompt."""
    arguments = _with_choices(http, asked, txt2img_arguments(asked, service.settings), service)
    second = asked.hr_checkpoint_name if asked.enable_hr else None
    if second is not None and service.model_named(second, "hr_checkpoint_name") != arguments["model"]:
        raise InputError("hr_checkpoint_name", second, "both passes are drawn with one model; leave it out")
    arguments, made = await _with_controls(asked, arguments, service)
    return await _draw(http, service, asked, arguments, None, made)


@router.post("/img2img")
async def img2img(http: HttpRequest, asked: Img2Img, service: CurrentService) -> ImagesAnswer:
    """Draw from a picture, or anew where a mask is white."""
    arguments, source = await asyncio.to_thread(edit_of, asked, service)
    arguments, made = await _with_controls(asked, _with_choices(http, asked, arguments, service), service)
    return await _draw(http, service, asked, arguments, source, made)


@router.get("/progress")
async def progress(service: CurrentService, jobs: Jobs, skip_current_image: bool = False) -> ProgressAnswer:
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
    return ProgressAnswer(
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
    """Stop all requests that the caller has made: each is answered with its images as they are, finished or not."""
    for job in jobs:
        job.stream.ticket.stop()
    return {}


@router.post("/skip")
async def skip(jobs: Jobs) -> dict[str, Any]:
    """Stop the oldest request that the caller has made, and go on with the next."""
    for job in jobs[:1]:
        job.stream.ticket.stop()
    return {}


@router.get("/options")
async def options(http: HttpRequest, service: CurrentService) -> dict[str, Any]:
    chosen = service.model_named(_chosen(http).get(owner_of(http)), MODEL)
    model = next((each for each in served(service) if each.name == chosen), Served(chosen, chosen))
    return {
        "sd_model_checkpoint": model.title,
        "sd_checkpoint_hash": model.sha256 or "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }


@router.post("/options")
async def set_options(http: HttpRequest, wanted: dict[str, Any], service: CurrentService) -> None:
    """Keep the model that the caller draws with from now on, and nothing else, so that nobody changes others' pictures.

    Options that would have to be kept are refused.
    """
    asked = overrides(wanted)
    if "model" in asked:
        model, chosen = service.model_named(asked.pop("model"), MODEL), _chosen(http)
        chosen.pop(owner_of(http), None)
        chosen[owner_of(http)] = model  # as the latest one
        if len(chosen) > MOST_CALLERS:
            del chosen[next(iter(chosen))]
    if asked:
        remedy = "options are not kept here; send it with each request, in override_settings"
        raise refusal(CLIP_SKIP, wanted[CLIP_SKIP], remedy)


@router.get("/sd-models")
async def sd_models(service: CurrentService) -> list[dict[str, Any]]:
    return [
        {
            "title": each.title,
            "model_name": each.name,
            "hash": each.hash,
            "sha256": each.sha256,
            "filename": each.file,
            "config": None,
        }
        for each in served(service)
    ]


@router.get("/samplers")
async def samplers(service: CurrentService) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in offered(service.settings):
        solver = solver_of(name)
        label, choice = a1111_name(solver)[0], AUTOMATIC.get(solver)
        item = {"name": label, "aliases": [solver], "options": {"scheduler": choice} if choice else {}}
        found.setdefault(label, item)
    return list(found.values())


@router.get("/schedulers")
async def schedulers(service: CurrentService) -> list[dict[str, Any]]:
    """The types of schedules."""
    names = dict.fromkeys(SCHEDULERS[name].sigma_schedule for name in offered(service.settings))
    types = {"automatic": "Automatic", CHECKPOINT.lower(): CHECKPOINT} | {
        name: a1111_name(f"euler_{name}")[1] for name in names if name is not None
    }
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
        for name, label in types.items()
    ]


@router.get("/loras", response_model=list[dict[str, Any]])
async def loras(service: CurrentService) -> AsciiResponse:
    """The LoRAs that prompts may have tags for. A tag has the name: here the alias is no other one."""
    return AsciiResponse(
        [
            {"name": each.name, "alias": each.name, "path": each.file, "metadata": read_metadata(each.metadata)}
            for each in await service.loras()
        ]
    )


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """What enlarges latents for second passes."""
    return [{"name": a1111_upscaler(name)} for name in MODES]


@router.get("/sd-vae")
@router.get("/script-info")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/extensions")
async def nothing() -> list[dict[str, Any]]:
    """Kinds of things that this server has none of."""
    return []


@router.get("/prompt-styles")
async def prompt_styles(service: CurrentService) -> list[dict[str, Any]]:
    """The styles that requests may name, and what each adds to the prompts."""
    return [vars(style) for style in service.styles.values()]


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    return {route: [CONTROLNET, TILED_DIFFUSION] for route in ("txt2img", "img2img")}


@router.get("/embeddings")
async def embeddings(service: CurrentService) -> dict[str, dict[str, Any]]:
    """The textual inversions that prompts may name, and those that could not be loaded, of which the log has more."""
    unsaid = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name"))
    found: dict[str, dict[str, Any]] = {"loaded": {}, "skipped": {}}
    for each in service.settings.embeddings:
        kind = "loaded" if each.problem is None else "skipped"
        found[kind][each.name] = {**unsaid, "shape": each.width, "vectors": each.places}
    return found


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    return {}


@router.get("/memory")
async def memory() -> dict[str, dict[str, str]]:
    unknown = {"error": "not measured here; see /metrics"}
    return {"ram": unknown, "cuda": unknown}


@router.post("/refresh-checkpoints")
@router.post("/refresh-embeddings")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
async def refresh() -> None:
    """Do nothing: LoRAs are looked for each time, and other files are read with the model."""


@router.post("/unload-checkpoint")
async def unload_checkpoint(http: HttpRequest, service: CurrentService) -> dict[str, Any]:
    """Free the memory of the devices. The next request loads the model again, and waits until it is there.

    So a key with limits, whose requests are one client's among others, may not do that to all.
    """
    if http.state.key.limited:
        raise ApiError(403, "unload-checkpoint: a key with limits may not; ask with one that has none")
    if service.want_loaded is None:
        raise ApiError(422, "unload-checkpoint: replicas keep the model loaded; stop the server to free the memory")
    if not await asyncio.wrap_future(service.want_loaded(False)):
        raise ApiError(409, "unload-checkpoint: images are being drawn, or the model is being loaded; try again later")
    return {}


@router.post("/reload-checkpoint")
async def reload_checkpoint(service: CurrentService) -> dict[str, Any]:
    """Load the model again, if it is unloaded."""
    if service.want_loaded is not None:
        await asyncio.wrap_future(service.want_loaded(True))
    return {}


@router.post("/png-info", dependencies=[Depends(fields({}))])
async def png_info(asked: PngInfo, service: CurrentService) -> Read:
    """The settings in a picture."""
    return await asyncio.to_thread(_read, asked.image, service.settings.max_pixels)


async def lacking(http: HttpRequest) -> None:
    """Refuse by name what jaxl lacks."""
    name = http.scope["route"].path.removeprefix(f"{router.prefix}/")
    raise ApiError(404, f"{name}: jaxl lacks it; {LACKING[name]}")


for _name in LACKING:
    router.add_api_route(f"/{_name}", lacking, methods=["GET", "POST"], include_in_schema=False)


async def _with_controls(
    asked: A1111Request, arguments: dict[str, Any], service: Service
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Return the arguments with what units of the script ControlNet ask for, and the pictures that modules made."""
    units = units_of(asked.alwayson_scripts)
    if not units:
        return arguments, []
    return await in_turn(with_units, units, service, service.wanted(arguments), arguments)


async def _draw(
    http: HttpRequest,
    service: Service,
    asked: A1111Request,
    arguments: Mapping[str, Any],
    source: Source | None,
    shown: Sequence[Image.Image],
) -> ImagesAnswer:
    """Draw, with a job for `progress` meanwhile; `source` is laid over the parts that a mask keeps.

    The images that are `shown` come after those that were drawn.
    """
    jobs = _all_jobs(http)
    async with service.attended(http, arguments, previews=PREVIEWS, policy=service.policy("nearest")) as stream:
        work = AnswerFiles(service, stream, source)
        job = Job(owner_of(http), stream)
        jobs.append(job)
        try:
            async for event in stream:
                if isinstance(event, Preview):
                    job.preview = event.pixels
            result = await stream.result()
        finally:
            jobs.remove(job)
    images = list(zip(result.numbers, result.images, strict=True))
    made = [work.settings(*drawn) for drawn in images]
    files = [(await work.file(*drawn)).data for drawn in images] if asked.send_images else []
    maps = await asyncio.to_thread(lambda: [encoded(each) for each in shown]) if asked.send_images else []
    unsaid = {"override_settings", "alwayson_scripts"}  # these may hold values that JSON cannot
    if isinstance(asked, Img2Img) and not asked.include_init_images:
        unsaid |= {"init_images", "mask"}
    return ImagesAnswer(
        images=[*(base64.b64encode(file).decode() for file in files), *maps],
        parameters=asked.model_dump(exclude=unsaid),
        info=json.dumps(_info(made, result.seeds, asked)),
    )


def _read(data: str, max_pixels: int) -> Read:
    image = decode(data, "image", max_pixels)
    texts = {str(name): text for name, text in image.info.items() if isinstance(text, str) and name != "parameters"}
    text = text_of(image)
    return Read(info=text, items=texts, parameters=read_a1111_text(text))


def served(service: Service) -> Sequence[Served]:
    """Return the models of a server, the usual one first."""
    name = service.settings.model
    return service.engine.models() or [Served(name, name)]


def _with_choices(
    http: HttpRequest, asked: A1111Request, arguments: Mapping[str, Any], service: Service
) -> dict[str, Any]:
    """Return arguments with the model that they name, or that the caller has chosen before, the refiner and the styles.

    Raises ApiError and InputError.
    """
    model, refiner = arguments.get("model") or _chosen(http).get(owner_of(http)), arguments["refiner"]
    refining = {} if refiner is None else {"refiner": service.model_named(refiner, FIELDS["refiner"])}
    return {
        **with_styles(arguments, asked.styles or [], service.styles),
        **refining,
        "model": service.model_named(model, MODEL),
    }


def _chosen(http: HttpRequest) -> dict[tuple[str, str], str]:
    """Return the models that callers have chosen for their next requests."""
    state = http.app.state
    if not hasattr(state, "a1111_models"):
        state.a1111_models = {}
    return state.a1111_models


def _all_jobs(http: HttpRequest) -> list[Job]:
    state = http.app.state
    if not hasattr(state, "a1111_jobs"):
        state.a1111_jobs = []
    return state.a1111_jobs


def _info(made: Sequence[Mapping[str, Any]], seeds: Sequence[int], asked: A1111Request) -> dict[str, Any]:
    """Return the `info` of images, with the fields of `Processed.js` in the web UI; `made` are their settings."""
    first, count = made[0], len(made)
    negative, second = first.get("negative_prompt", ""), hires_texts(first["hires"]) if "hires" in first else {}
    return {
        "prompt": first["prompt"],
        "all_prompts": [first["prompt"]] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": first.get("variation_seed", -1),
        "all_subseeds": [own.get("variation_seed", -1) for own in made],
        "subseed_strength": first.get("variation_strength", 0),
        "width": first["width"],
        "height": first["height"],
        "sampler_name": a1111_name(first["scheduler"])[0],
        "cfg_scale": first["guidance_scale"],
        "steps": first["steps"],
        "batch_size": asked.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first["model"],
        "sd_model_hash": first.get("model_hash"),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": first.get("seed_resize_from", (-1, -1))[0],
        "seed_resize_from_h": first.get("seed_resize_from", (-1, -1))[1],
        "denoising_strength": float(second[STRENGTH]) if second else first.get("strength"),
        "extra_generation_params": {
            "Schedule type": a1111_name(first["scheduler"])[1],
            **{label: value for label, value in second.items() if label != STRENGTH},
            **({"Resized to": first["resized_to"]} if "resized_to" in first else {}),
            **refiner_texts(first),
            **({"Lora hashes": lora_hashes(first)} if "lora_hashes" in first else {}),
        },
        "index_of_first_image": 0,
        "infotexts": [a1111_text(own) for own in made],
        "styles": asked.styles or [],
        "job_timestamp": _timestamp(),
        "clip_skip": first.get("clip_skip", 0) + USUAL_CLIP_SKIP,
        "is_using_inpainting_conditioning": False,
        "version": f"jaxl {first['version']}",
    }


def _timestamp() -> str:
    return time.strftime("%Y%m%d%H%M%S")
