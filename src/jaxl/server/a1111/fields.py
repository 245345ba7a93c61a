"""The fields of AUTOMATIC1111's API, and the arguments of `Pipeline.generate` that they stand for.

`arguments_of` and `edit_of` refuse by name what jaxl lacks. `scheduler_of` joins a sampler and a type of schedule.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from PIL import ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator

from jaxl.call.hires import PREFIX, Hires
from jaxl.call.images import read_image, read_mask
from jaxl.diffusion.names import AUTOMATIC, CHECKPOINT, a1111_name, find_name
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.errors import InputError
from jaxl.server.a1111.controlnet import SCRIPT as CONTROLNET
from jaxl.server.a1111.options import MAX_CLIP_SKIP, USUAL_NOISE, clip_skip, overrides, refusal
from jaxl.server.a1111.tiled_diffusion import SCRIPT as TILED_DIFFUSION
from jaxl.server.a1111.tiled_diffusion import tiles_of
from jaxl.server.edits import Source, filled, transparent
from jaxl.server.limits import Count, GuidanceScale, Name, Proportion, Seed, Side
from jaxl.server.pictures import decode
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.text.prompt import Syntax
from jaxl.text.prompt_styles import PromptStyle, chosen

# the arguments of `Pipeline.generate` that have other names here
FIELDS = {
    "scheduler": "sampler_name",
    "guidance_scale": "cfg_scale",
    "num_images": "batch_size",
    "image": "init_images",
    "strength": "denoising_strength",
    "padding_mask_crop": "inpaint_full_res_padding",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "seed_resize_from": "seed_resize_from_w",
    "hires": "enable_hr",
    **{
        f"{PREFIX}{name}": field
        for name, field in {
            "scale": "hr_scale",
            "size": "hr_resize_x",
            "upscaler": "hr_upscaler",
            "steps": "hr_second_pass_steps",
            "strength": "denoising_strength",
            "prompt": "hr_prompt",
            "negative_prompt": "hr_negative_prompt",
            "scheduler": "hr_sampler_name",
            "guidance_scale": "hr_cfg",
        }.items()
    },
    "seamless": "tiling",
    "refiner": "refiner_checkpoint",
    "refiner_at": "refiner_switch_at",
    "prompt_style": "styles",
    **dict.fromkeys(("tile_size", "tile_overlap"), "alwayson_scripts"),
}

# what jaxl lacks: fields that may ask for nothing, with what to do instead
LACKING: Mapping[str, str] = {
    "restore_faces": "there is no face restoration; leave it out",
    "s_min_uncond": "the negative prompt is never skipped; leave it out",
    "script_name": "there are no scripts; leave it out",
    "infotext": "it is not read here; give its settings as fields",
    "latent_mask": "give the mask as mask",
}
# what clients send in these and other fields where nobody has chosen anything
MAY_BE_UNASKED = (
    *LACKING,
    *("tiling", "styles", "refiner_checkpoint"),
    *("seed_resize_from_w", "seed_resize_from_h", "sampler_name", "sampler_index", "scheduler"),
    *("alwayson_scripts", "override_settings"),
    *(
        "enable_hr",
        "hr_upscaler",
        "hr_resize_x",
        "hr_resize_y",
        "hr_checkpoint_name",
        "hr_sampler_name",
        "hr_scheduler",
    ),
    *("firstphase_width", "firstphase_height"),
)
NO_CHOICE = ("", "none", "null", "false", "0", "-1", "automatic", "use same sampler", "use same scheduler")
NO_CHOICE += ("use same checkpoint",)

Positive = Annotated[float, Field(ge=0, le=1e6)]
Flag = bool | None


class A1111Request(BaseModel):
    """What both ways to draw take; null is not given, and unknown fields are passed over."""

    model_config = ConfigDict(allow_inf_nan=False)

    prompt: str | None = None
    negative_prompt: str | None = None
    seed: Seed | None = Field(-1, description="Counts up from image to image; -1 is random.")
    batch_size: Count | None = 1
    n_iter: Count | None = Field(1, description="Times `batch_size` gives the images.")
    steps: Count | None = None
    cfg_scale: GuidanceScale | None = None
    width: Side | None = None
    height: Side | None = None
    sampler_name: Name | None = None
    sampler_index: Name | None = Field(None, description="Where there is no `sampler_name`.")
    scheduler: Name | None = Field(None, description="The schedule type, such as Karras.")
    eta: Proportion | None = None
    s_churn: Positive | None = None
    s_tmin: Positive | None = None
    s_tmax: Positive | None = Field(None, description="0 is no limit.")
    s_noise: Positive | None = None
    override_settings: dict[str, Any] | None = None
    clip_skip: int | None = Field(
        None, ge=0, le=MAX_CLIP_SKIP, description="As SD.Next has it, like CLIP_stop_at_last_layers."
    )
    prompt_syntax: Syntax | None = Field(None, description="lenient by default; jaxl's own.")
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool = True
    enable_hr: Flag = None
    refiner_checkpoint: str | None = Field(None, description="A model of the server that draws the last steps.")
    refiner_switch_at: Proportion | None = Field(
        None, description="Where it takes over, in shares of the noise levels: 0.8; 1 is never."
    )
    restore_faces: Flag = None
    tiling: Flag = None
    styles: list[str] | None = Field(None, description="Of prompt-styles; they add to the prompts.")
    subseed: Seed | None = Field(-1, description="Counts up in place of the seed, with a strength; -1 is random.")
    subseed_strength: Proportion | None = None
    seed_resize_from_h: Side | None = None
    seed_resize_from_w: Side | None = None
    s_min_uncond: float | None = None
    script_name: str | None = None
    infotext: str | None = None
    initial_noise_multiplier: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _asked_alone(cls, given: Any) -> Any:
        """Leave out what asks for nothing, of whatever kind it is."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in MAY_BE_UNASKED or _is_asked(value)}


class Txt2Img(A1111Request):
    denoising_strength: Proportion | None = Field(0.75, description="Of the second pass, which enable_hr asks for.")
    hr_scale: float | None = 2.0
    hr_upscaler: Name | None = Field(None, description="Latent, where nothing else is given.")
    hr_second_pass_steps: int | None = Field(0, ge=0, le=1000)
    hr_resize_x: Side | None = Field(
        None, description="In place of hr_scale; of 0 and null, it follows from the other."
    )
    hr_resize_y: Side | None = None
    hr_checkpoint_name: str | None = None
    hr_sampler_name: Name | None = None
    hr_scheduler: Name | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    hr_cfg: GuidanceScale | None = Field(None, description="As Forge has it.")
    firstphase_width: Side | None = Field(None, description="Where it is given, width and height are the second's.")
    firstphase_height: Side | None = None


class Img2Img(A1111Request):
    init_images: list[str] | None = Field(None, description="One PNG, JPEG or WebP picture in base64.")
    denoising_strength: Proportion | None = 0.75
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


def arguments_of(asked: A1111Request, settings: Settings) -> dict[str, Any]:
    """Those of `Pipeline.generate`. Raises ApiError for what jaxl lacks."""
    for name, remedy in LACKING.items():
        if (value := getattr(asked, name, None)) is not None:
            raise refusal(name, value, remedy)
    for name, script in (asked.alwayson_scripts or {}).items():
        if name.lower() not in (CONTROLNET, TILED_DIFFUSION) and _is_on(script):
            raise refusal("alwayson_scripts", name, "there is no such script; leave it out")
    if asked.initial_noise_multiplier not in (None, 1):
        raise refusal("initial_noise_multiplier", asked.initial_noise_multiplier, "noise is not scaled; leave it out")
    batch, times = asked.batch_size or 1, asked.n_iter or 1
    if batch * times > settings.max_images:
        name, value = max(("batch_size", batch), ("n_iter", times), key=lambda pair: pair[1])
        raise refusal(name, value, f"{batch * times} images in all; ask for at most {settings.max_images}")
    scheduler = scheduler_of(asked.sampler_name or asked.sampler_index, asked.scheduler, settings.scheduler)
    churns = bool(asked.s_churn)
    skip = {} if asked.clip_skip is None else clip_skip("clip_skip", asked.clip_skip)
    return {
        "prompt": asked.prompt or "",
        "negative_prompt": asked.negative_prompt or None,  # an empty one is zeros in SDXL there too
        "seed": asked.seed,
        "num_images": batch * times,
        "steps": asked.steps,
        "guidance_scale": asked.cfg_scale,
        "width": asked.width,
        "height": asked.height,
        "scheduler": scheduler,
        "prompt_syntax": asked.prompt_syntax or "lenient",  # as it is read there
        # there a sampler that adds no noise takes it, and goes without
        "eta": asked.eta if scheduler is None or SCHEDULERS[scheduler].solver.eta is not None else None,
        "s_churn": asked.s_churn or None,
        "s_tmin": asked.s_tmin if churns else None,
        "s_tmax": (asked.s_tmax or None) if churns else None,
        "s_noise": None if asked.s_noise == 1 else asked.s_noise,
        "seamless": "xy" if asked.tiling else None,
        "refiner": None if asked.refiner_switch_at == 1 else asked.refiner_checkpoint,
        "refiner_at": asked.refiner_switch_at,
        **skip,
        **tiles_of(asked.alwayson_scripts),
        **_variation(asked),
        **overrides(asked.override_settings or {}),
    }


def txt2img_arguments(asked: Txt2Img, settings: Settings) -> dict[str, Any]:
    """Those of `Pipeline.generate`, with a second pass. Raises ApiError and InputError."""
    arguments = arguments_of(asked, settings)
    if not asked.enable_hr:
        return arguments
    size = (asked.hr_resize_x or 0, asked.hr_resize_y or 0)
    if asked.firstphase_width and asked.firstphase_height and asked.width and asked.height:
        size = asked.width, asked.height
        arguments |= {"width": asked.firstphase_width, "height": asked.firstphase_height}
    own = asked.hr_sampler_name or asked.hr_scheduler
    sampler, schedule = asked.hr_sampler_name or asked.sampler_name or asked.sampler_index, asked.hr_scheduler
    hires = Hires(
        scale=2.0 if asked.hr_scale is None else asked.hr_scale,
        size=size if any(size) else None,
        upscaler=asked.hr_upscaler or "latent",
        steps=asked.hr_second_pass_steps or 0,
        strength=0.75 if asked.denoising_strength is None else asked.denoising_strength,
        prompt=asked.hr_prompt or None,
        negative_prompt=asked.hr_negative_prompt or None,
        scheduler=scheduler_of(sampler, schedule or asked.scheduler, settings.scheduler) if own else None,
        guidance_scale=asked.hr_cfg,
    )
    return {**arguments, "hires": hires}


def with_styles(arguments: Mapping[str, Any], names: Sequence[str], known: Mapping[str, PromptStyle]) -> dict[str, Any]:
    """Return arguments with what prompt styles add to the prompts. Raises ApiError and InputError for a name."""
    if not (wanted := [name for name in names if _is_asked(name)]):
        return {**arguments}
    if not known:
        raise refusal("styles", wanted[0], "no styles are kept here; write their texts into the prompt")
    styles, hires = chosen(known, wanted), arguments.get("hires")

    def styled(prompt: str | None, negative: str | None) -> dict[str, str | None]:
        texts = prompt or "", negative or ""
        for style in styles:
            texts = style.apply(*texts)
        return {"prompt": texts[0], "negative_prompt": texts[1] or None}

    if hires is not None:
        own = styled(hires.prompt, hires.negative_prompt)
        hires = replace(hires, **{name: text for name, text in own.items() if getattr(hires, name)})
    return {**arguments, **styled(arguments["prompt"], arguments["negative_prompt"]), "hires": hires}


def _variation(asked: A1111Request) -> dict[str, Any]:
    """The arguments that say of which seed, and of which size, the noise is besides."""
    found: dict[str, Any] = {}
    if asked.subseed_strength:
        seed = secrets.randbelow(2**32) if asked.subseed in (None, -1) else asked.subseed
        found |= {"variation_seed": seed, "variation_strength": asked.subseed_strength}
    if asked.seed_resize_from_w and asked.seed_resize_from_h:  # one of them alone is nothing there
        found |= {**USUAL_NOISE, "seed_resize_from": (asked.seed_resize_from_w, asked.seed_resize_from_h)}
    return found


def edit_of(asked: Img2Img, service: Service) -> tuple[dict[str, Any], Source]:
    """The arguments of `Pipeline.generate`, and what is laid over what a mask leaves as it is.

    Decodes pictures, which takes a while. Raises ApiError and InputError.
    """
    arguments = arguments_of(asked, service.settings)
    if asked.enable_hr:
        raise refusal("enable_hr", True, "second passes are for txt2img; ask for a larger size")
    source = _source(asked, service.settings.max_pixels)
    arguments |= {"image": source.picture, "mask": source.mask, "strength": asked.denoising_strength}
    if source.mask is not None and asked.inpaint_full_res:
        arguments["padding_mask_crop"] = asked.inpaint_full_res_padding or 0
    else:
        source = _resized(source, asked.resize_mode or 0, *service.wanted(arguments))
    start = source.picture
    if source.mask is not None and not asked.inpainting_fill:
        start = filled(source.picture, source.mask)
    return {**arguments, "image": start, "mask": source.mask}, source


def scheduler_of(sampler: str | None, schedule: str | None, default: str) -> str | None:
    """The full name of a scheduler for a sampler and a type of schedule of the web UI; None if neither is chosen.

    Raises InputError for the sampler and ApiError for the schedule. `default` is for a schedule alone.
    """
    kind = (schedule or "automatic").strip().lower()
    if sampler is None and kind == "automatic":
        return None
    name = find_name(sampler or default)
    solver = SCHEDULERS[name].solver
    if kind == "automatic":
        choice = AUTOMATIC.get(name)
        return f"{name}_{choice}" if choice else name
    try:
        full = find_name(f"{solver.name} {kind}")
    except InputError:
        full = None
    if full is None or solver_of(full) != solver.name:
        labels = (a1111_name(f"{solver.name}_{each}")[1] for each in solver.schedules)
        known = ", ".join(("Automatic", CHECKPOINT, *labels))
        raise refusal("scheduler", schedule, f"with {solver.name}, known: {known}")
    return full


def solver_of(name: str) -> str:
    return SCHEDULERS[name].solver.name


def offered(settings: Settings) -> Sequence[str]:
    return settings.schedulers or tuple(SCHEDULERS)


def _is_asked(value: Any) -> bool:
    """Whether a value asks for something, of whatever kind it is."""
    if isinstance(value, list):
        return any(each is not None and str(each).lower() not in NO_CHOICE for each in value)
    if isinstance(value, str):
        return value.strip().lower() not in NO_CHOICE
    return bool(value) and not (isinstance(value, int | float) and value < 0)


def _is_on(script: Any) -> bool:
    """Whether a script is to do something: clients send those that they know, turned off."""
    args = script.get("args") if isinstance(script, dict) else script
    units = args if isinstance(args, list) else [args]
    off = all(not _is_asked(unit) or (isinstance(unit, dict) and unit.get("enabled") is False) for unit in units)
    return not off and units[0] is not False


def _source(asked: Img2Img, max_pixels: int) -> Source:
    given = asked.init_images or []
    if len(given) != 1:
        raise refusal("init_images", f"{len(given)} pictures", "give one")
    picture = read_image(decode(given[0], "init_images", max_pixels), "init_images")
    if not asked.mask:
        return Source(picture, None)
    if asked.inpainting_fill not in (None, 0, 1):
        raise refusal("inpainting_fill", asked.inpainting_fill, "give 0, the colours around, or 1, the picture")
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
        raise refusal("resize_mode", mode, "give 0 to stretch the picture, or 1 to crop it")
    return source.cropped(width, height)
