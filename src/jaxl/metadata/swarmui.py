"""What SwarmUI writes: JSON with `sui_image_params` (https://github.com/mcmonkeyprojects/SwarmUI, `T2IParamInput.cs`).

It draws with ComfyUI's samplers; the noise that it starts from is a CPU's, each picture's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxl.metadata.comfyui_names import comfyui_prompt, comfyui_sampler
from jaxl.metadata.container import COMMENT, HIDDEN, Texts
from jaxl.metadata.settings import Reading, Settings, as_number

PARAMETERS = "sui_image_params"
# what says nothing more of the picture, or is read in its place
NOTES = {"prompt", "negativeprompt", "model", "seed", "steps", "cfgscale", "width", "height", "aspectratio", "sampler"}
NOTES |= {"scheduler", "comfyuisampler", "comfyuischeduler", "vae", "loras", "loraweights", "loratencweights", "images"}
NOTES |= {
    "swarm_version",
    "date",
    "generation_time",
    "nopreviews",
    "imageformat",
    "donotsave",
    "personalnote",
    "batchsize",
}
NOTES |= {"automaticvae", "clipstopatlayer", "initimage", "initimagecreativity", "original_prompt", "used_wildcards"}
NOTES |= {"refinermodel", "refinercontrolpercentage", "variationseed", "variationseedstrength", "resolution"}
NOTES |= {"wildcardseed", "wildcardseedbehavior", "colordepth", "modelspecificenhancements", "internalbackendtype"}
# SDXL's usual layer, counted from the end
USUAL_LAYER = -2


def read(texts: Texts) -> Settings | None:
    """Read SwarmUI's JSON."""
    for name in ("parameters", COMMENT, HIDDEN, "Model"):
        whole = texts.object(name)
        if isinstance(whole.get(PARAMETERS), dict):
            return _own(whole[PARAMETERS], whole)
    return None


def _own(told: Mapping[str, Any], whole: Mapping[str, Any]) -> Settings:
    reading = Reading("SwarmUI", told.get("swarm_version", ""))
    reading.noise = "torch"
    for name, own in (("prompt", "prompt"), ("negative_prompt", "negativeprompt")):
        comfyui_prompt(reading, name, told.get(own, ""))
    reading.steps(told.get("steps"))
    reading.number("guidance_scale", told.get("cfgscale"), least=0, most=1000)
    reading.seed(told.get("seed"))
    reading.size(told.get("width"), told.get("height"))
    # these two are its own where nobody chose
    sampler = told.get("sampler", told.get("comfyuisampler", "euler"))
    comfyui_sampler(reading, sampler, told.get("scheduler", told.get("comfyuischeduler", "normal")))
    if told.get("variationseedstrength"):
        for name, own in (("variation_seed", "variationseed"), ("variation_strength", "variationseedstrength")):
            reading.number(name, told.get(own), int if own == "variationseed" else float, own)
    layer = as_number(told.get("clipstopatlayer"), int)
    if layer is not None and -100 <= layer < USUAL_LAYER:
        reading.arguments["clip_skip"] = USUAL_LAYER - layer
    if "initimagecreativity" in told:
        reading.strength(told["initimagecreativity"])
    hashes = _hashes(whole.get("sui_models"))
    reading.network("model", told.get("model"), hashes.get("model", ""))
    reading.network("vae", told.get("vae"), hashes.get("vae", ""))
    share = as_number(told.get("refinercontrolpercentage"), float)
    if told.get("refinermodel") and share:
        reading.refiner(told["refinermodel"], hashes.get("refinermodel", ""), 1 - share)
    weights, texts = _parts(told.get("loraweights")), _parts(told.get("loratencweights"))
    for i, name in enumerate(_parts(told.get("loras"))):
        reading.lora(name, weights[i] if i < len(weights) else 1, texts[i] if i < len(texts) else None)
    for name, value in told.items():
        if name not in NOTES and value not in (None, False, "", [], {}):
            reading.miss(name, value)
    return reading.done()


def _parts(told: object) -> list[object]:
    """Return a list that may be a text with commas."""
    parts = told.split(",") if isinstance(told, str) else told if isinstance(told, list) else []
    return [each.strip() if isinstance(each, str) else each for each in parts[:100]]


def _hashes(models: object) -> dict[str, object]:
    """Return hashes by the parameter that a model was for."""
    found = [each for each in models[:100] if isinstance(each, dict)] if isinstance(models, list) else []
    return {str(each.get("param")): each.get("hash", "") for each in found}
