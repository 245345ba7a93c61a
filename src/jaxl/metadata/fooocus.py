"""What Fooocus and RuinedFooocus write: JSON, or A1111's text.

https://github.com/lllyasviel/Fooocus, `modules/meta_parser.py`; https://github.com/runew0lf/RuinedFooocus has keys of
its own. Both draw with ComfyUI's samplers, and noise of a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxl.metadata.a1111 import from_pairs
from jaxl.metadata.comfyui_names import comfyui_prompt, comfyui_sampler
from jaxl.metadata.container import COMMENT, Texts
from jaxl.metadata.settings import Reading, Settings, as_number

PROGRAM, RUINED = "Fooocus", "RuinedFooocus"
# how it draws beyond ComfyUI, which jaxl lacks
OWN_WAYS = ("sharpness", "adm_guidance", "adaptive_cfg", "freeu", "refiner_swap_method", "inpaint_engine_version")
OWN_WAYS += ("inpaint_mode", "inpaint_method")
OTHERS = "Fooocus' own way, which jaxl lacks"
# what says nothing more of the picture
NOTES = {"prompt", "negative_prompt", "full_prompt", "full_negative_prompt", "steps", "resolution", "guidance_scale"}
NOTES |= {"clip_skip", "base_model", "base_model_hash", "refiner_model", "refiner_model_hash", "refiner_switch"}
NOTES |= {"sampler", "scheduler", "vae", "seed", "loras", "version", "metadata_scheme", "created_by", "styles"}
# numbers of steps, which are said too; others bring a LoRA that is not among those in the file
PERFORMANCES = ("Speed", "Quality")
# the usual layer counts as 2, in Fooocus for both encoders
USUAL_CLIP_SKIP = 2
LORA = re.compile(r"lora_combined_[0-9]+")


def read(texts: Texts) -> Settings | None:
    """Read Fooocus' JSON, or its text."""
    for name in ("parameters", COMMENT):
        told = texts.object(name)
        if told.get("software") == RUINED:
            return _ruined(told)
        if told.get("metadata_scheme") == "fooocus" or str(told.get("version")).startswith(PROGRAM):
            return _own(told)
    pairs = texts.pairs()
    if pairs is None or not pairs.get("Version", "").startswith(PROGRAM):
        return None
    return from_pairs(Reading(PROGRAM, _version(pairs["Version"])), pairs)


def _version(told: object) -> str:
    return str(told).removeprefix(PROGRAM).strip()


def _own(told: Mapping[str, Any]) -> Settings:
    reading = Reading(PROGRAM, _version(told.get("version", "")))
    reading.noise = "torch"
    for name in ("prompt", "negative_prompt"):
        # with the styles and what the network added
        parts = told.get(f"full_{name}")
        comfyui_prompt(reading, name, *(parts if isinstance(parts, list) and parts else [told.get(name, "")]))
    if told.get("styles") not in (None, "[]", []) and not told.get("full_prompt"):
        reading.miss("styles", told["styles"], "write their texts into `prompt`")
    reading.steps(told.get("steps"))
    reading.number("guidance_scale", told.get("guidance_scale"), least=0, most=1000)
    reading.seed(told.get("seed"))
    sides = re.findall(r"[0-9]{1,6}", str(told.get("resolution", ""))[:100])
    if len(sides) == 2:
        reading.size(*sides)
    elif "resolution" in told:
        reading.miss("resolution", told["resolution"])
    comfyui_sampler(reading, told.get("sampler"), told.get("scheduler"))
    _clip_skip(reading, told.get("clip_skip"))
    reading.network("model", told.get("base_model"), told.get("base_model_hash"))
    reading.network("vae", None if told.get("vae") == "Default (model)" else told.get("vae"))
    reading.refiner(told.get("refiner_model"), told.get("refiner_model_hash"), told.get("refiner_switch"))
    for name, value in told.items():
        if LORA.fullmatch(name):
            lora, _, weight = str(value).rpartition(" : ")
            reading.lora(lora, weight)
    for each in told["loras"][:100] if isinstance(told.get("loras"), list) else ():
        if isinstance(each, list) and len(each) >= 2:
            reading.lora(each[0], each[1], hash=each[2] if len(each) > 2 else "")
    for name, value in told.items():
        if name in OWN_WAYS:
            reading.miss(name, value, OTHERS)
        elif name == "performance":
            if value not in PERFORMANCES:
                reading.miss(name, value, "load the LoRA that makes it fast, as one of `loras`")
        elif name not in NOTES and not LORA.fullmatch(name):
            reading.miss(name, value)
    return reading.done()


def _ruined(told: Mapping[str, Any]) -> Settings:
    reading = Reading(RUINED)
    reading.noise = "torch"
    for name, key in (("prompt", "Prompt"), ("negative_prompt", "Negative")):
        comfyui_prompt(reading, name, told.get(key, told.get(name, "")))
    reading.steps(told.get("steps"))
    reading.number("guidance_scale", told.get("cfg"), least=0, most=1000)
    reading.seed(told.get("seed"))
    reading.size(told.get("width"), told.get("height"))
    comfyui_sampler(reading, told.get("sampler_name"), told.get("scheduler"))
    _clip_skip(reading, told.get("clip_skip"))
    reading.network("model", told.get("base_model_name"), told.get("base_model_hash"))
    reading.refiner(told.get("refiner_model_name"))
    if isinstance(told.get("loras"), str):
        loras = [(name, weight, "") for name, weight in re.findall(r"<([^<>]+):([^<>:]+)>", told["loras"][:10_000])]
    else:
        loras = [_ruined_lora(each) for each in told["loras"][:100]] if isinstance(told.get("loras"), list) else []
    for name, weight, hash in loras:
        reading.lora(name, weight, hash=hash)
    if told.get("denoise") not in (None, 1, 1.0):
        reading.strength(told["denoise"])
    return reading.done()


def _ruined_lora(told: object) -> tuple[object, object, object]:
    """Return name, weight and hash of a pair such as ["4852686128", "0.1 - offset.safetensors"]."""
    hash, text = told if isinstance(told, list) and len(told) == 2 else ("", "")
    weight, _, name = str(text).partition(" - ")
    return name, weight, hash


def _clip_skip(reading: Reading, value: object) -> None:
    skip = as_number(value, int)
    if skip is not None and USUAL_CLIP_SKIP < skip <= 100:
        reading.arguments["clip_skip"] = skip - USUAL_CLIP_SKIP
