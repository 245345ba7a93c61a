"""The settings in a picture's file, so that it can be drawn again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError

from jaxl.call.infotext import EMBEDDINGS, LABELS, READERS, RESIZED, read_a1111_text, text_of
from jaxl.call.sizes import read_size
from jaxl.call.unit_texts import take_units
from jaxl.diffusion.names import AUTOMATIC, find_name
from jaxl.diffusion.other_noise import RNG_NAMES
from jaxl.errors import InputError
from jaxl.png import read_settings_text
from jaxl.server.a1111.fields import scheduler_of
from jaxl.server.a1111.options import ENSD, USUAL_CLIP_SKIP, USUAL_NOISE
from jaxl.server.controls import MOST_CONTROLS, ControlField
from jaxl.server.errors import RESPONSES, ApiError
from jaxl.server.image_prompts import MOST_PROMPTS, ImagePromptField
from jaxl.server.pictures import decode
from jaxl.server.service import CurrentService
from jaxl.server.settings import Settings

router = APIRouter(prefix="/v1/images", tags=["jaxl"], responses=RESPONSES)

# names that tell of a picture but change nothing in it, and values that ask for nothing
NOTES = {"Version", "Model hash", "VAE hash", "Lora hashes", "Created Date", "User", "Init image hash"}
NOTES |= {"metadata_scheme"}
NOTHING = ("", "None", "[]", "{}", "False", "false", "null", "Automatic")
# limits of `unread`: entries, and characters of each
MOST_UNREAD, LONGEST_UNREAD = 100, 200


@dataclass(frozen=True)
class Pictured:
    """What a request has several of, each with pictures of its own, of which a file tells all but these pictures.

    fields, most: as requests have it. pictures: what they are called; lacking: what stands for them.
    """

    fields: type[ControlField | ImagePromptField]
    most: int
    pictures: str
    lacking: Mapping[str, Any]


PICTURED: Mapping[str, Pictured] = {
    "controls": Pictured(ControlField, MOST_CONTROLS, "picture", {"image": ""}),
    "image_prompts": Pictured(ImagePromptField, MOST_PROMPTS, "pictures", {"images": [""]}),
}


class PictureFile(BaseModel):
    image: Annotated[str, Field(description="A PNG, JPEG or WebP picture, in base64.")]


@router.post("/settings")
async def settings(asked: PictureFile, service: CurrentService) -> dict[str, Any]:
    """What made a picture, by the names of `Pipeline.generate`: what jaxl wrote into its file, or A1111 and its kin.

    The seed is a text, because it has up to 64 bits, and JSON's readers often 53. `unread` is what else the file asks
    for, as "name: value".
    """
    return await asyncio.to_thread(_settings, asked.image, service.settings)


def _settings(data: str, server: Settings) -> dict[str, Any]:
    image = decode(data, "image", server.max_pixels)
    own, hashes = image.info.get("jaxl"), [each.hash for each in server.embeddings]
    if isinstance(own, str):
        found = {**read_settings_text(own, "image"), "unread": []}
        told = found.pop("embeddings", None)  # the prompt names them, as far as this server has them
        if isinstance(told, dict):
            found["unread"] = [f"{EMBEDDINGS}: {name}" for name, hash in told.items() if hash not in hashes]
        _add_pictured(found, {name: found.pop(name, None) for name in PICTURED})
    elif known := read_a1111_text(text_of(image)):
        found = a1111_settings(known, server.scheduler, server.model, hashes, server.ip_adapters)
    else:
        raise InputError("image", "a picture", "no settings that can be read; give one as jaxl or A1111 wrote it")
    return {**found, "seed": str(found["seed"])} if "seed" in found else found


def a1111_settings(
    known: Mapping[str, str],
    default: str,
    model: str = "",
    hashes: Collection[str | None] = (),
    adapters: Collection[str] = (),
) -> dict[str, Any]:
    """Return the settings of a text of A1111 by jaxl's names. The list `unread` has those that cannot be read.

    `default` is the scheduler to which a type of schedule alone applies, `model` the name of the model that draws,
    `hashes` are those of its textual inversions, and `adapters` the names of its IP-Adapters.
    """
    left = dict(known)
    found: dict[str, Any] = {
        "prompt": left.pop("Prompt", ""),
        "negative_prompt": left.pop("Negative prompt", ""),
        "prompt_syntax": "lenient",  # A1111 read it so
        **_scheduler(left, default),
    }
    for name, label in LABELS.items():
        # the strength is that of a second pass where there is one
        if name == "strength" and any(other.startswith("Hires ") for other in left):
            continue
        with suppress(KeyError, ValueError, OverflowError):
            number = READERS[name](left[label])
            if math.isfinite(number):
                found[name] = number
                del left[label]
    if size := read_size(left.get(RESIZED, "")):
        found["seed_resize_from"] = size
        del left[RESIZED]
    if left.get("RNG") in RNG_NAMES:
        found["noise"] = RNG_NAMES[left.pop("RNG")]
    elif "seed_resize_from" in found or ENSD in found:
        found |= USUAL_NOISE
    if size := read_size(left.get("Size", "")):
        found["width"], found["height"] = size
        del left["Size"]
    with suppress(KeyError, ValueError, OverflowError):
        skip = max(int(left["Clip skip"]) - USUAL_CLIP_SKIP, 0)
        found |= {"clip_skip": skip} if skip else {}
        del left["Clip skip"]
    if {each.rpartition(": ")[2] for each in left.get(EMBEDDINGS, "").split(", ")} <= {*hashes}:
        left.pop(EMBEDDINGS, None)
    if left.get("Model", "").removesuffix(".safetensors") == model:
        left.pop("Model", None)
    pictured = take_units(left, adapters)
    unread = [f"{name}: {value}" for name, value in left.items() if name not in NOTES and value not in NOTHING]
    found["unread"] = [each[:LONGEST_UNREAD] for each in unread[:MOST_UNREAD]]
    _add_pictured(found, pictured)
    return found


def _add_pictured(found: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Add the controls and image prompts of a picture, as far as requests can have them; their pictures are unread."""
    for label, kind in PICTURED.items():
        own, read = asked[label], []
        for each in own[:MOST_UNREAD] if isinstance(own, list) else ():
            if not isinstance(each, dict):
                continue
            found["unread"].append(f"{label}: the {kind.pictures} of {each.get('name')}"[:LONGEST_UNREAD])
            with suppress(ValidationError):
                facts = {name: value for name, value in each.items() if name in kind.fields.model_fields}
                read.append(kind.fields.model_validate({**facts, **kind.lacking}))
        if read:
            shown = read[: kind.most]
            found[label] = [each.model_dump(exclude={*kind.lacking}, exclude_unset=True) for each in shown]


def _scheduler(left: dict[str, str], default: str) -> dict[str, str]:
    """Read the scheduler, if that can be, and take the fields it was read from out of `left`."""
    sampler, label = left.get("Sampler"), "Schedule type" if "Schedule type" in left else "Scheduler"
    schedule = left.get(label) or None
    name, read = None, ("Sampler", label)
    if schedule is not None:
        with suppress(InputError, ApiError):
            name = scheduler_of(sampler, schedule, default)
    if name is None and sampler:
        with suppress(InputError):
            name, read = find_name(sampler), ("Sampler",)
            if name in AUTOMATIC:  # before A1111 1.9 a name without a schedule had none of these
                name = scheduler_of(name, "Uniform", default)
    if name is None:
        return {}
    for each in read:
        left.pop(each, None)
    return {"scheduler": name}
