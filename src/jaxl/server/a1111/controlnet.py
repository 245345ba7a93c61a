"""The API of sd-webui-controlnet, an extension of AUTOMATIC1111's web UI, as plugins of drawing programs call it.

Names and defaults are those of its wiki (https://github.com/Mikubill/sd-webui-controlnet/wiki/API) and of Forge.
Pictures come as the networks take them: there are no preprocessors here, and a unit that asks for one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxl.call.control import Control, Weighting
from jaxl.call.images import read_image
from jaxl.server.a1111.options import refusal
from jaxl.server.controls import MOST_CONTROLS
from jaxl.server.errors import A1111_RESPONSES, ApiError
from jaxl.server.pictures import decode
from jaxl.server.service import CurrentService, Service

SCRIPT = "controlnet"
ALIASES: Mapping[str, str] = {
    "guidance": "guidance_end",
    "input_image": "image",
    "guessmode": "control_mode",
    "lowvram": "low_vram",
}
MODES: Mapping[Any, Weighting] = {
    **dict.fromkeys((None, False, 0, "Balanced"), "balanced"),
    **dict.fromkeys((1, "My prompt is more important"), "prompt"),
    **dict.fromkeys((2, "ControlNet is more important"), "control"),
}
STRETCH, CROP = "Just Resize", "Crop and Resize"
RESIZES: Mapping[Any, str] = {
    **dict.fromkeys((0, STRETCH), STRETCH),
    **dict.fromkeys((None, 1, CROP, "Scale to Fit (Inner Fit)", "Inner Fit (Scale to Fit)"), CROP),
}
NO_MODULE = (None, "", "none", "None")

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
    guidance_start: float = Field(0.0, ge=0, le=1)
    guidance_end: float = Field(1.0, ge=0, le=1)
    control_mode: bool | int | str | None = "Balanced"
    advanced_weighting: list[float] | None = None
    effective_region_mask: str | None = None
    union_control_type: str | None = None
    ipadapter_input: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Take the names that older clients have."""
        if not isinstance(given, dict):
            return given
        return {ALIASES.get(name, name): value for name, value in given.items()}


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


def controls_of(
    units: list[Unit], service: Service, width: int, height: int, start: Image.Image | None
) -> list[Control]:
    """Return the controls of units for an image of this size, which may start from a picture.

    Decodes pictures, which takes a while. Raises ApiError and InputError.
    """
    return [_control(unit, service, (width, height), start) for unit in units]


def _control(unit: Unit, service: Service, size: tuple[int, int], start: Image.Image | None) -> Control:
    if unit.module not in NO_MODULE:
        raise refusal("module", unit.module, 'there are no preprocessors here; send what the network takes, and "none"')
    for name in ("advanced_weighting", "effective_region_mask", "ipadapter_input"):
        if (value := getattr(unit, name)) not in (None, ""):
            raise refusal(name, value, "not known here; leave it out")
    if unit.resize_mode not in RESIZES:
        raise refusal("resize_mode", unit.resize_mode, f"give {STRETCH!r} or {CROP!r}")
    if unit.control_mode not in MODES:
        raise refusal("control_mode", unit.control_mode, "give 'Balanced' or another of the modes that there are")
    image = unit.image
    if isinstance(image, dict):
        image = image.get("image")
    elif isinstance(image, list):
        image = image[0] if image else None
    picture = start
    if image is not None:
        picture = read_image(decode(image, "alwayson_scripts", service.settings.max_pixels), "alwayson_scripts")
    if picture is None:
        raise refusal("image", None, "the unit has no picture to follow; give one")
    fitted = picture.resize(size, Image.Resampling.LANCZOS) if RESIZES[unit.resize_mode] == STRETCH else None
    return Control(
        str(unit.model).partition(" [")[0],
        fitted or ImageOps.fit(picture, size, Image.Resampling.LANCZOS),
        unit.weight,
        unit.guidance_start,
        unit.guidance_end,
        MODES[unit.control_mode],
        None if unit.union_control_type in (None, "", "Unknown") else unit.union_control_type,
    )


@router.get("/version")
async def version() -> dict[str, int]:
    """The version whose units are understood."""
    return {"version": 3}


@router.get("/settings")
async def settings() -> dict[str, int]:
    return {"control_net_unit_count": MOST_CONTROLS}


@router.get("/model_list")
async def model_list(service: CurrentService) -> dict[str, list[str]]:
    """The ControlNets by name."""
    return {"model_list": list(service.settings.controlnets)}


@router.get("/module_list")
async def module_list() -> dict[str, Any]:
    """No preprocessor but none."""
    return {"module_list": ["none"], "module_detail": {"none": {"model_free": False, "sliders": []}}}


@router.get("/control_types")
async def control_types(service: CurrentService) -> dict[str, Any]:
    names = ["None", *service.settings.controlnets]
    every = {"module_list": ["none"], "model_list": names, "default_option": "none", "default_model": names[-1]}
    return {"control_types": {"All": every}}


@router.api_route("/detect", methods=["GET", "POST"], include_in_schema=False)
async def detect() -> None:
    raise ApiError(404, "controlnet/detect: jaxl lacks it; there are no preprocessors here")
