"""Settings in the text that AUTOMATIC1111's web UI writes into pictures, as most programs do after it.

It is the prompt, the negative prompt and a line of settings (https://github.com/AUTOMATIC1111/stable-diffusion-webui,
`modules/infotext_utils.py`). Each program has fields of its own; parts that cannot be read are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from PIL import ExifTags, Image

from jaxl.call.hires_texts import hires_texts
from jaxl.call.options import DrawOptions
from jaxl.call.tile_texts import tile_texts
from jaxl.call.unit_texts import unit_texts
from jaxl.diffusion.names import a1111_name
from jaxl.diffusion.other_noise import RNG_NAMES
from jaxl.text.tags import written
from jaxl.weights.adapters.strength import Strength

MAX_CHARACTERS = 1_000_000
# a line with fewer pairs is a part of the prompt
LEAST_PAIRS = 3
# as many parts between commas are read
MOST_PARTS = 10_000
# after as many values that begin like JSON but are not, JSON is not tried again, so that no text takes long
MOST_BROKEN = 10

SEPARATORS = re.compile(r"[\s,]*")
NAME = re.compile(r"([^\s:,\"\[\]{}][^:,\"\[\]{}]{0,99}):(?:\s+|$)")
VALUE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"(?=\s*(?:,|$))|[^,]*')
END = re.compile(r"\s*(?:,|$)")
FIRST = re.compile(r"\s*Steps: *[0-9]")
# extensions for wildcards write these under the settings
TEMPLATE = re.compile(r"\s*(?:Negative )?Template:")

# textual inversions in the prompts, as "name: hash, name: hash", without these marks in the names
EMBEDDINGS, MARKS = "TI hashes", {ord(mark): None for mark in ":,"}

# the size of the picture whose noise is in the middle
RESIZED = "Seed resize from"

# the options that stand in the text as numbers: their names in it, and how each is read
_HINTS = {
    name: get_args(hint)
    for name, hint in get_type_hints(DrawOptions, include_extras=True).items()
    if get_origin(hint) is Annotated
}
LABELS: dict[str, str] = {name: label for name, (_, label) in _HINTS.items()}
READERS = {name: int if int in get_args(hint) else float for name, (hint, _) in _HINTS.items()}

# the beginnings of EXIF's UserComment (CIPA DC-008, 4.6.6) before UTF-16, and before UTF-8 or ASCII
WIDE, PLAIN = b"UNICODE\0", (b"ASCII\0\0\0", b"\0" * 8)


def a1111_text(settings: Mapping[str, Any]) -> str:
    """Return the text for a picture: prompt, negative prompt and a line of settings, as A1111 1.9 and later write it.

    `settings` has at least prompt, steps, scheduler, guidance_scale, seed, width and height; `embeddings` are hashes by
    name. A1111 has no second prompt; it is left out. A scheduler that A1111 lacks keeps its own name. LoRAs that the
    prompt has no tags for get theirs at its end; `lora_hashes` are the digests of all, by name.
    """
    sampler, schedule = a1111_name(settings["scheduler"])
    pairs = {
        LABELS["steps"]: settings["steps"],
        "Sampler": sampler,
        "Schedule type": schedule,
        LABELS["guidance_scale"]: f"{settings['guidance_scale']:.10g}",
        LABELS["seed"]: settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
    }
    if settings.get("resized_to"):
        pairs["Resized to"] = settings["resized_to"]
    if settings.get("model"):
        if settings.get("model_hash"):
            pairs["Model hash"] = settings["model_hash"]
        # a path would tell strangers about the machine, and A1111 has names alone
        pairs["Model"] = Path(settings["model"]).name.removesuffix(".safetensors")
    pairs |= refiner_texts(settings)
    for name, label in LABELS.items():
        if label not in pairs and settings.get(name) is not None:
            value = settings[name]
            pairs[label] = value if isinstance(value, int) else f"{value:g}"
    for label, source in RNG_NAMES.items():
        if source == settings.get("noise"):
            pairs["RNG"] = label
    if settings.get("seed_resize_from"):
        pairs[RESIZED] = "x".join(map(str, settings["seed_resize_from"]))
    if settings.get("seamless") == "xy":
        pairs["Tiling"] = True
    if settings.get("clip_skip"):
        # A1111 counts from the last layer, jaxl from SDXL's usual second-to-last one
        pairs["Clip skip"] = settings["clip_skip"] + 2
    hashes = {name: own for name, own in (settings.get("embeddings") or {}).items() if own}
    if hashes:
        pairs[EMBEDDINGS] = ", ".join(f"{name.translate(MARKS)}: {own}" for name, own in hashes.items())
    if settings.get("lora_hashes"):
        pairs["Lora hashes"] = lora_hashes(settings)
    if settings.get("hires"):
        pairs |= hires_texts(settings["hires"])
    if size := settings.get("tile_size"):
        pairs |= tile_texts(size, settings.get("tile_overlap", size // 4))
    pairs |= unit_texts(*(settings.get(name) or () for name in ("controls", "image_prompts")))
    if settings.get("version"):
        pairs["Version"] = f"jaxl {settings['version']}"
    negative = settings.get("negative_prompt")
    lines = [
        " ".join([settings["prompt"], *_tags(settings.get("loras"))]),
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items()),
    ]
    return _whole("\n".join(lines)).replace("\0", "")  # PNG allows no NUL in a text


def refiner_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the pairs of an image's refiner, as A1111 writes them; none if it has none."""
    if not settings.get("refiner"):
        return {}
    name, hash = Path(settings["refiner"]).name.removesuffix(".safetensors"), settings.get("refiner_hash")
    return {"Refiner": f"{name} [{hash}]" if hash else name, "Refiner switch at": f"{settings['refiner_at']:g}"}


def lora_hashes(settings: Mapping[str, Any]) -> str:
    """Return the digests of an image's LoRAs as A1111 writes them."""
    return ", ".join(f"{name}: {digest}" for name, digest in settings["lora_hashes"].items())


def _tags(loras: Mapping[str, Any] | None) -> list[str]:
    """Return the tags of LoRAs that were asked for by name."""
    found = []
    for name, value in (loras or {}).items():
        strength = Strength.read("loras", value)
        text = strength.unet if strength.text is None else strength.text
        # a tag has one strength for both text encoders
        found.append(written(name, text[0] if isinstance(text, tuple) else text, strength.unet))
    return found


def read_a1111_text(text: str) -> dict[str, str]:
    """Read such a text: the settings by their names in it, "Prompt" and "Negative prompt". Never raises.

    The settings are the last lines from "Steps: " on, or the last line, if that has three pairs. JSON in them is one
    value. The result is empty for JSON alone, which other programs write, and for texts of more than MAX_CHARACTERS.
    """
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return {}
    if text.startswith("{") and _is_json(text):
        return {}
    lines, pairs = _split(re.split(r"\r?\n", text))
    start = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:").strip()
    return {"Prompt": "\n".join(lines[:start]).strip(), "Negative prompt": negative, **pairs}


def text_of(image: Image.Image) -> str:
    """Return the text in a picture, "" if there is none: a PNG's `parameters`, or else EXIF's UserComment."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    try:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception:  # damaged metadata raises all kinds of errors
        return ""
    return decode_comment(comment) if isinstance(comment, bytes) else comment if isinstance(comment, str) else ""


def decode_comment(comment: bytes) -> str:
    """Return the text of EXIF's UserComment, in whichever order of bytes it was written."""
    head, rest = comment[:8], comment[8:]
    if head == WIDE:
        # the order of the bytes is not said; the upper bytes of Latin letters are zeros
        order = "utf-16-le" if rest[1::2].count(0) > rest[::2].count(0) else "utf-16-be"
        return rest.decode(order, "replace")
    return (rest if head in PLAIN else comment).decode("utf-8", "replace")


def _split(lines: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the lines of the prompts, and the pairs of the line of settings that may follow."""
    begins = next((i for i in reversed(range(len(lines))) if FIRST.match(lines[i])), len(lines) - 1)
    for start in dict.fromkeys((begins, len(lines) - 1)):
        pairs = _pairs(_joined(lines[start:]))
        if len(pairs) >= LEAST_PAIRS:
            return lines[:start], pairs
    return lines, {}


def _joined(lines: Sequence[str]) -> str:
    """Return a line of settings, joined with the lines after it up to a template or an empty line."""
    parts = [lines[0]]
    for before, line in pairwise(lines):
        if not line.strip() or TEMPLATE.match(line):
            break
        ends, begins = ":" in before.rpartition(",")[2], ":" in line.partition(",")[0]
        parts += [", " if ends and begins else " ", line]
    return "".join(parts)


def _pairs(line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    decoder, broken, place = json.JSONDecoder(), 0, 0
    for _ in range(MOST_PARTS):
        place = _end(SEPARATORS, line, place)
        if place == len(line):
            break
        name = NAME.match(line, place)
        if name is None:
            place = _end(VALUE, line, place)
            continue
        place = end = name.end()
        if line[place : place + 1] in ("[", "{") and broken < MOST_BROKEN:
            try:
                end = decoder.raw_decode(line, place)[1]
            except (ValueError, RecursionError):
                broken += 1
        if end == place or not END.match(line, end):
            end = _end(VALUE, line, place)
        found[name[1].strip()] = _unquoted(line[place:end].strip())
        place = end
    return found


def _end(pattern: re.Pattern[str], line: str, place: int) -> int:
    match = pattern.match(line, place)
    return place if match is None else match.end()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        with suppress(ValueError):
            return _whole(json.loads(value))
    return value


def _whole(text: str) -> str:
    """Replace halves of surrogate pairs: JSON may have them, UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()
