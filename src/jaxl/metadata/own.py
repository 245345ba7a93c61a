"""What jaxl itself writes, in JSON beside A1111's text."""

from __future__ import annotations

from typing import Any

from jaxl.call.hires import Hires
from jaxl.call.options import OF_PICTURES, DrawOptions
from jaxl.call.region import FACTS, Region
from jaxl.errors import InputError
from jaxl.metadata.container import Texts
from jaxl.metadata.settings import Reading, Settings
from jaxl.png import read_settings_text

# what a picture was drawn from, by the names of their files
PICTURES = {"image": "the picture that it was drawn from", "mask": "the mask"}
# what says nothing that `generate` has to know
NOTES = {"version", "dtype", "lora_hashes", "model_hash", "num_images", *PICTURES, *OF_PICTURES}
TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
# how the model was loaded, as networks and else
LOADED = {"model": "model", "unet": "model", "vae": "vae"}
REFINER = ("refiner", "refiner_hash", "refiner_at")


def read(texts: Texts) -> Settings | None:
    """Read jaxl's own settings. Raises InputError for those that are damaged."""
    if "jaxl" not in texts:
        return None
    told = read_settings_text(texts["jaxl"], "image", "a picture")
    reading = Reading("jaxl", told.get("version", ""))
    for name, value in told.items():
        if name in TEXTS:
            reading.text(name, value)
        elif name == "loras" and not isinstance(value, dict):
            reading.miss(name, value)
        elif name == "hires":
            _second_pass(reading, value)
        elif name == "regions":
            _read_regions(reading, _list(value))
        elif name in DrawOptions.__annotations__:
            if name not in NOTES and value is not None:
                reading.arguments[name] = value
        elif name in LOADED:
            reading.network(LOADED[name], value, detail="the U-Net" if name == "unet" else "")
        elif name == "embeddings":
            for each, hash in _items(value):
                reading.network("embedding", each, hash)
        elif name not in (*NOTES, *REFINER) and value is not None:
            reading.miss(name, value)
    reading.refiner(*(told.get(name) for name in REFINER))
    hashes = dict(_items(told.get("lora_hashes")))
    for name in {**dict(_items(told.get("loras"))), **hashes}:
        reading.network("lora", name, hashes.get(name))
    for name, what in PICTURES.items():
        if told.get(name) or (name == "image" and "strength" in told):
            reading.miss(what, told.get(name), f"give it as `{name}`")
    for name, kept in (("controls", reading.controls), ("image_prompts", reading.image_prompts)):
        kept += [each for each in _list(told.get(name)) if isinstance(each, dict) and each]
    return reading.done()


def _second_pass(reading: Reading, told: Any) -> None:
    try:
        reading.second_pass(Hires(**told))
    except (InputError, TypeError):
        reading.miss("the second pass", told)


def _read_regions(reading: Reading, told: list[Any]) -> None:
    """Give the regions, all but those with masks, which no file has."""
    found = []
    for facts in (each if isinstance(each, dict) else {} for each in told):
        try:
            # a mask is nobody's to name here: it would be a file of this machine
            found.append(Region(**{name: value for name, value in facts.items() if name in FACTS}))
        except InputError:
            reading.miss("the region of a mask", facts.get("prompt"), "give it as one of `regions`")
        except TypeError:
            reading.miss("a region without a prompt")
    if found:
        reading.give("regions", found)


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
