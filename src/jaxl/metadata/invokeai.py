"""What InvokeAI writes: `invokeai_metadata`, and before version 3 `sd-metadata` and `Dream`.

https://github.com/invoke-ai/InvokeAI, `invokeai/app/invocations/metadata.py`; the older two are of its command line.
Its noise has the dtype of its GPU, which files do not say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxl.metadata.container import Texts
from jaxl.metadata.settings import Reading, Settings, as_number

PROGRAM = "InvokeAI"
# weights of words, in which its syntax differs from all of jaxl's
WEIGHTED = re.compile(r"[\w)\"][+]+(?=[\s,.)]|$)|\)-+(?=[\s,.)]|$)|\)[0-9.]+|\)\.(?:and|blend|swap)\(|\bblend\(")
# what says nothing more of the picture
NOTES = {"type", "generation_mode", "rand_device", "app_version", "positive_prompt", "negative_prompt", "seed", "steps"}
NOTES |= {"scheduler", "cfg_scale", "width", "height", "model", "loras", "vae", "strength", "cfg_rescale_multiplier"}
NOTES |= {"positive_style_prompt", "negative_style_prompt", "refiner_model", "refiner_start", "clip_skip"}
NOTES |= {"controlnets", "ipAdapters", "t2iAdapters", "init_image"}
# pictures that it followed: keys of lists, and of the network in an entry
FOLLOWED = {"controlnets": "control_model", "t2iAdapters": "t2i_adapter_model", "ipAdapters": "ip_adapter_model"}
# of its command line; older versions wrote the value without a space
FLAGS = {"-s": "steps", "-S": "seed", "-W": "width", "-H": "height", "-C": "cfg_scale", "-A": "sampler"}
FLAGS |= {"-f": "strength"}
FLAG = re.compile(r"(-[sSWHCf])([0-9.]*)|(-A)(\w*)")


def read(texts: Texts) -> Settings | None:
    """Read the newest of what a file has."""
    if told := texts.object("invokeai_metadata"):
        return _own(told)
    image = texts.object("sd-metadata").get("image")
    if isinstance(image, dict):
        whole = texts.object("sd-metadata")
        model = whole.get("model_weights"), whole.get("model_hash")
        return _older(Reading(PROGRAM, whole.get("app_version", "")), image, model)
    if "Dream" in texts:
        return _command_line(texts["Dream"])
    return None


def _own(told: Mapping[str, Any]) -> Settings:
    reading = Reading(PROGRAM, told.get("app_version", ""))
    _prompts(reading, told.get("positive_prompt"), told.get("negative_prompt"))
    for name, own in (("prompt_2", "positive_style_prompt"), ("negative_prompt_2", "negative_style_prompt")):
        if told.get(own):
            reading.text(name, told[own])
    reading.number("guidance_scale", told.get("cfg_scale"), least=0, most=1000)
    if told.get("cfg_rescale_multiplier"):
        reading.number("guidance_rescale", told["cfg_rescale_multiplier"], least=0, most=1)
    _basics(reading, told, told.get("scheduler"))
    if told.get("clip_skip"):
        reading.miss("clip_skip", told["clip_skip"])
    if told.get("strength") is not None and told.get("generation_mode") not in ("txt2img", "sdxl_txt2img"):
        reading.strength(told["strength"])
    reading.network("model", *_named(told.get("model")))
    reading.network("vae", *_named(told.get("vae")))
    reading.refiner(*_named(told.get("refiner_model")), told.get("refiner_start"))
    for each in _list(told.get("loras")):
        name, hash = _named(each.get("model", each.get("lora")))
        reading.lora(name, each.get("weight", 1), hash=hash)
    for key, network in FOLLOWED.items():
        for each in _list(told.get(key)):
            name, _ = _named(each.get(network))
            weight = as_number(each.get("control_weight", each.get("weight", 1)), float)
            if isinstance(name, str):
                facts = {"name": name, **({} if weight is None else {"strength": weight})}
                (reading.image_prompts if key == "ipAdapters" else reading.controls).append(facts)
    for name, value in told.items():
        if name not in NOTES and value not in (None, False, "", [], {}):
            reading.miss(name, value)
    return reading.done()


def _older(reading: Reading, image: Mapping[str, Any], model: tuple[object, object]) -> Settings:
    """Read the `image` of `sd-metadata`, whose negative prompt stands in the prompt's square brackets."""
    reading.style = None  # that of its later versions
    told = image.get("prompt")
    told = told[0].get("prompt") if isinstance(told, list) and told and isinstance(told[0], dict) else told
    positive, negative = _bracketed(told) if isinstance(told, str) else (told, None)
    _prompts(reading, positive, negative)
    reading.number("guidance_scale", image.get("cfg_scale"), least=0, most=1000)
    _basics(reading, image, image.get("sampler"))
    if image.get("type") == "img2img" and image.get("strength") is not None:
        reading.strength(image["strength"])
    reading.network("model", *model)
    for name in ("threshold", "perlin", "hires_fix", "seamless", "postprocessing", "variations"):
        if image.get(name) not in (None, False, 0, 0.0, "", []):
            reading.miss(name, image[name])
    return reading.done()


def _command_line(text: str) -> Settings:
    """Read the prompt in quotes with its flags, such as "a castle [rain]" -s 20 -S 5 -W 512 -H 512 -C 7.5 -A k_lms."""
    prompt, _, rest = text[:100_000].strip().removeprefix('"').rpartition('"')
    words = rest.split()
    told: dict[str, Any] = {"prompt": prompt}
    reading = Reading(PROGRAM)
    left = iter(words)
    for word in left:
        flag = FLAG.fullmatch(word)
        if flag is None:
            reading.miss("flag", word)
        else:
            told[FLAGS[flag[1] or flag[3]]] = flag[2] or flag[4] or next(left, "")
    return _older(reading, told | ({"type": "img2img"} if "strength" in told else {}), (None, None))


def _prompts(reading: Reading, positive: object, negative: object) -> None:
    reading.text("prompt", positive)
    if negative:  # an empty one is zeros for SDXL there, as none is here
        reading.text("negative_prompt", negative)
    reading.arguments["prompt_syntax"] = "literal"
    for text in (positive, negative):
        if isinstance(text, str) and WEIGHTED.search(text[:100_000]):
            reading.miss(
                "weights of words in InvokeAI's syntax", remedy="write them as (word:1.1), with `prompt_syntax`='a1111'"
            )


def _basics(reading: Reading, told: Mapping[str, Any], scheduler: object) -> None:
    reading.seed(told.get("seed"))
    reading.steps(told.get("steps"))
    reading.size(told.get("width"), told.get("height"))
    reading.sampler(scheduler)


def _bracketed(prompt: str) -> tuple[str, str]:
    """Return a prompt without its parts in square brackets, and these parts."""
    parts = re.findall(r"\[([^\[\]]*)\]", prompt)
    return re.sub(r"\[[^\[\]]*\]", "", prompt).strip(), ", ".join(parts)


def _named(told: object) -> tuple[object, object]:
    """Return name and hash of a network, whose keys differ between versions."""
    if not isinstance(told, dict):
        return (told, "") if isinstance(told, str) else (None, "")
    return told.get("name", told.get("model_name")), told.get("hash", "")


def _list(told: object) -> list[dict[str, Any]]:
    return [each for each in told[:100] if isinstance(each, dict)] if isinstance(told, list) else []
