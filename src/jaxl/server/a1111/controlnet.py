"""The API of sd-webui-controlnet, an extension of AUTOMATIC1111's web UI, as plugins of drawing programs call it.

Names and defaults are those of its wiki (https://github.com/Mikubill/sd-webui-controlnet/wiki/API) and of Forge.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from fastapi import APIRouter
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxl.call.control import CONTROL_MODES, Control, Weighting
from jaxl.call.image_prompt import ImagePrompt
from jaxl.call.images import read_image
from jaxl.call.sizes import Size
from jaxl.preprocessors.preprocessor import LEAST_RESOLUTION, MOST_RESOLUTION
from jaxl.server.a1111.modules import IP_MODULES, NO_MODULE, NONE, control_types, detail, facts_of, find_module
from jaxl.server.a1111.options import refusal
from jaxl.server.controls import MOST_CONTROLS
from jaxl.server.errors import A1111_RESPONSES
from jaxl.server.hires import ends_at
from jaxl.server.pictures import decode
from jaxl.server.preprocess import OFFERED, encoded, in_turn, prepared
from jaxl.server.service import CurrentService, Service

SCRIPT = "controlnet"
ALIASES: Mapping[str, str] = {
    "guidance": "guidance_end",
    "input_image": "image",
    "guessmode": "control_mode",
    "lowvram": "low_vram",
}
MODES: Mapping[Any, Weighting] = {
    None: "balanced",
    **{key: own for number, (own, name) in enumerate(CONTROL_MODES.items()) for key in (number, name)},
}
STRETCH, CROP, FILL = "Just Resize", "Crop and Resize", "Resize and Fill"
RESIZES: Mapping[Any, str] = {
    **dict.fromkeys((0, STRETCH), STRETCH),
    **dict.fromkeys((None, 1, CROP, "Scale to Fit (Inner Fit)", "Inner Fit (Scale to Fit)"), CROP),
    **dict.fromkeys((2, FILL, "Envelope (Outer Fit)", "Outer Fit (Shrink to Fit)"), FILL),
}
# of a second pass, for which some clients have numbers or names in the code
BOTH_PASSES = (None, 0, "Both", "HiResFixOption.BOTH")
# of one request to detect
MOST_PICTURES = 16

router = APIRouter(prefix="/controlnet", tags=["A1111"], responses=A1111_RESPONSES)


class Unit(BaseModel):
    """One unit; fields that change nothing here are passed over."""

    model_config = ConfigDict(allow_inf_nan=False)

    enabled: bool = True
    module: str | None = "none"
    model: str | None = None
    weight: float = Field(1.0, ge=0, le=10)
    image: str | dict[str, Any] | list[str] | None = None
    mask: str | None = None
    mask_image: str | None = None
    resize_mode: int | str | None = CROP
    processor_res: int = -1
    threshold_a: float = -1
    threshold_b: float = -1
    pixel_perfect: bool = False
    save_detected_map: bool = True
    guidance_start: float = Field(0.0, ge=0, le=1)
    guidance_end: float = Field(1.0, ge=0, le=1)
    control_mode: bool | int | str | None = "Balanced"
    advanced_weighting: list[float] | None = None
    effective_region_mask: str | None = None
    union_control_type: str | None = None
    ipadapter_input: list[str] | None = None
    hr_option: int | str | None = "Both"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Take the names that older clients have."""
        if not isinstance(given, dict):
            return given
        return {ALIASES.get(name, name): value for name, value in given.items()}

    @property
    def network(self) -> str:
        """The name of its model, without a digest."""
        return str(self.model).partition(" [")[0]

    def pictures(self) -> tuple[str | None, str | None]:
        """Return its picture and its mask, as they came."""
        image, mask = self.image, self.mask_image or self.mask
        if isinstance(image, dict):
            image, mask = image.get("image"), mask or image.get("mask")
        elif isinstance(image, list):
            image, other, *_ = (*image, None, None)
            mask = mask or other
        return image or None, mask or None


def units_of(scripts: Mapping[str, Any] | None) -> list[Unit]:
    """Return the units that are on. Raises ApiError."""
    found: list[Unit] = []
    for name, script in (scripts or {}).items():
        if name.lower() != SCRIPT:
            continue
        args = script.get("args") if isinstance(script, dict) else script
        for number, unit in enumerate(args if isinstance(args, list) else [args]):
            try:
                read = Unit.model_validate(unit or {"enabled": False})
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "unit"
                raise refusal(SCRIPT, f"unit {number}", f"{field}: {first['msg']}") from None
            if read.enabled and read.model not in NO_MODULE:
                found.append(read)
    if len(found) > MOST_CONTROLS:
        raise refusal(SCRIPT, f"{len(found)} units", f"give at most {MOST_CONTROLS}")
    return found


def with_units(
    units: list[Unit], service: Service, size: Size, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Return the arguments of an image of this size with what units ask for, and the pictures that modules made.

    This takes a while. Raises ApiError and InputError.
    """
    adapters = service.settings.ip_adapters
    prompts = [_image_prompt(unit, service, size, arguments) for unit in units if unit.network in adapters]
    others = [unit for unit in units if unit.network not in adapters]
    controls, made = controls_of(others, service, size, arguments)
    found = {"controls": controls, "image_prompts": prompts}
    return {**arguments, **{name: each for name, each in found.items() if each}}, made


def _image_prompt(unit: Unit, service: Service, size: Size, arguments: Mapping[str, Any]) -> ImagePrompt:
    """Return what a unit with an IP-Adapter asks for, whose module is the adapter's own encoder by any name."""
    for name in ("advanced_weighting", "ipadapter_input"):
        if (value := getattr(unit, name)) not in (None, ""):
            raise refusal(name, value, "not known here; leave it out")
    if unit.module not in (*NO_MODULE, *IP_MODULES):
        raise refusal("module", unit.module, f"{unit.network} is an IP-Adapter; give {IP_MODULES[0]!r}")
    most, region = service.settings.max_pixels, unit.effective_region_mask
    sent, _ = unit.pictures()
    picture = arguments.get("image") if sent is None else decode(sent, "alwayson_scripts", most)
    if picture is None:
        raise refusal("image", None, "the unit has no picture to be like; give one")
    mask = None
    if region:
        mask = read_image(decode(region, "effective_region_mask", most), "effective_region_mask").resize(size)
    picture = read_image(picture, "alwayson_scripts")
    return ImagePrompt(unit.network, picture, unit.weight, mask, unit.guidance_start, unit.guidance_end)


def controls_of(
    units: list[Unit], service: Service, size: Size, arguments: Mapping[str, Any]
) -> tuple[list[Control], list[Image.Image]]:
    """Return the controls of units for an image of this size, and the pictures of them that modules made.

    `arguments` have the picture that the image starts from, if any, and its mask. This takes a while.
    Raises ApiError and InputError.
    """
    controls = [_control(unit, service, size, arguments) for unit in units]
    made = [
        control.image
        for unit, control in zip(units, controls, strict=True)
        if unit.save_detected_map and "preprocess" in control.told
    ]
    return controls, made


def _control(unit: Unit, service: Service, size: Size, arguments: Mapping[str, Any]) -> Control:
    for name in ("advanced_weighting", "effective_region_mask", "ipadapter_input"):
        if (value := getattr(unit, name)) not in (None, ""):
            raise refusal(name, value, "not known here; leave it out")
    if unit.resize_mode not in RESIZES:
        raise refusal("resize_mode", unit.resize_mode, f"give {STRETCH!r}, {CROP!r} or {FILL!r}")
    if unit.control_mode not in MODES:
        raise refusal("control_mode", unit.control_mode, "give 'Balanced' or another of the modes that there are")
    hires = arguments.get("hires")
    if hires is not None and unit.hr_option not in BOTH_PASSES:
        raise refusal("hr_option", unit.hr_option, "a ControlNet has a part in both passes here; give 'Both'")
    most = service.settings.max_pixels
    sent, mask = unit.pictures()
    if sent is None:
        picture, mask = arguments.get("image"), mask or arguments.get("mask")
    else:
        picture = decode(sent, "alwayson_scripts", most)
    if picture is None:
        raise refusal("image", None, "the unit has no picture to follow; give one")
    picture, mode = read_image(picture, "alwayson_scripts"), RESIZES[unit.resize_mode]
    told: dict[str, Any] = {"resize_mode": mode, "pixel_perfect": unit.pixel_perfect}
    if unit.module not in NO_MODULE:
        resolution = _pixel_perfect(picture.size, size, mode) if unit.pixel_perfect else unit.processor_res
        module = find_module(str(unit.module))
        facts = facts_of(module, resolution, unit.threshold_a, unit.threshold_b)
        picture = prepared(picture, facts, mask if module.masked else None, most)
        told["preprocess"] = facts
    return Control(
        unit.network,
        fitted(picture, ends_at(size, hires), mode),
        unit.weight,
        unit.guidance_start,
        unit.guidance_end,
        MODES[unit.control_mode],
        None if unit.union_control_type in (None, "", "Unknown") else unit.union_control_type,
        told,
    )


def _pixel_perfect(own: Size, size: Size, mode: str) -> int:
    """Return the resolution of a picture at which it is scaled no further for an image of this size."""
    width, height = (wanted / side for wanted, side in zip(size, own, strict=True))
    exact = round((min if mode == FILL else max)(width, height) * min(own))
    return min(max(exact, LEAST_RESOLUTION), MOST_RESOLUTION)


def fitted(picture: Image.Image, size: Size, mode: str) -> Image.Image:
    """Return a picture in another size: stretched, cropped, or with bars in the middle colour of its border.

    One in black and white alone stays so.
    """
    if picture.size == size:
        return picture
    colours = picture.getcolors(2)
    if mode == STRETCH:
        scaled = picture.resize(size, Image.Resampling.LANCZOS)
    elif mode == CROP:
        scaled = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    else:
        scaled = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=_border(picture))
    if colours and {colour for _, colour in colours} <= {(0, 0, 0), (255, 255, 255)}:
        return scaled.point(([0] * 128 + [255] * 128) * 3)
    return scaled


def _border(picture: Image.Image) -> tuple[int, ...]:
    """Return the median of the colours at a picture's border."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(each) for each in np.median(border, axis=0))


@router.get("/version")
async def version() -> dict[str, int]:
    """The version whose units are understood."""
    return {"version": 3}


@router.get("/settings")
async def settings() -> dict[str, int]:
    return {"control_net_unit_count": MOST_CONTROLS}


@router.get("/model_list")
async def model_list(service: CurrentService) -> dict[str, list[str]]:
    """The ControlNets and IP-Adapters by name."""
    return {"model_list": [*service.settings.controlnets, *service.settings.ip_adapters]}


@router.get("/module_list")
async def module_list(service: CurrentService, alias_names: bool = False) -> dict[str, Any]:
    """The preprocessors by name, or by the names that people are shown, and IP-Adapters' encoders."""
    details = {each.modules[-1 if alias_names else 0]: detail(each) for each in OFFERED.values()}
    encoders = IP_MODULES if service.settings.ip_adapters else ()
    details = {name: {"model_free": False, "sliders": []} for name in (NONE, *encoders)} | details
    return {"module_list": list(details), "module_detail": details}


@router.get("/control_types")
async def types(service: CurrentService) -> dict[str, Any]:
    """The preprocessors and networks of each type."""
    return {"control_types": control_types(service.settings.controlnets, service.settings.ip_adapters)}


class Detect(BaseModel):
    """Pictures for a preprocessor."""

    model_config = ConfigDict(allow_inf_nan=False)

    controlnet_module: str = NONE
    controlnet_input_images: list[str] = Field([], max_length=MOST_PICTURES)
    controlnet_images: list[str] = Field([], max_length=MOST_PICTURES, description="The same, as webuiapi calls it.")
    controlnet_masks: list[str] = Field([], max_length=MOST_PICTURES)
    controlnet_processor_res: int = -1
    controlnet_threshold_a: float = -1
    controlnet_threshold_b: float = -1


class Detected(BaseModel):
    """What it made, PNG files in base64."""

    images: list[str]
    info: str


@router.post("/detect")
async def detect(asked: Detect, service: CurrentService) -> Detected:
    """Make pictures as ControlNets take them."""
    return await in_turn(_detected, asked, service.settings.max_pixels)


def _detected(asked: Detect, most: int) -> Detected:
    sent = asked.controlnet_input_images + asked.controlnet_images
    if not sent:
        raise refusal("controlnet_input_images", [], "give a picture in base64")
    pictures = [read_image(decode(data, "controlnet_input_images", most), "controlnet_input_images") for data in sent]
    if asked.controlnet_module not in NO_MODULE:
        module = find_module(asked.controlnet_module)
        numbers = (asked.controlnet_processor_res, asked.controlnet_threshold_a, asked.controlnet_threshold_b)
        facts, masks = facts_of(module, *numbers), asked.controlnet_masks[: len(sent)] if module.masked else []
        pictures = [prepared(picture, facts, mask, most) for picture, mask in zip_longest(pictures, masks)]
    return Detected(images=[encoded(each) for each in pictures], info="Success")
