"""Tags in prompts that ask for adapters, as AUTOMATIC1111's web UI reads them: `<lora:name:0.8>`.

`<lora:NAME>`, `<lora:NAME:TEXT>` or `<lora:NAME:TEXT:UNET>`: the strength of the text encoders comes first, and is that
of the U-Net too where that is left out; 1 where both are. They have names as well: `te=`, `unet=`. The extension
sd-webui-lora-block-weight adds `lbw=` with strengths of blocks, and `start=`, `stop=` or `step=FIRST-LAST`, here a
number of steps, or a share of them with a point. `lyco` is another word for `lora`. A tag is no part of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jaxl.errors import InputError
from jaxl.text.strict import shortened

TAG = re.compile(r"(\\.)|<(?:lora|lyco):([^<>]+)>", re.DOTALL)
# the syntaxes in which prompts may have tags
TAGGED = ("a1111", "lenient")
NAMES = ("te", "unet", "lbw", "start", "stop", "step")


@dataclass(frozen=True)
class Tag:
    """An adapter that a prompt asks for: strengths of both text encoders and of the U-Net, and those of `blocks`.

    `start` and `end` are steps, or shares of them where they are floats.
    """

    name: str
    text: float = 1.0
    unet: float = 1.0
    blocks: tuple[float, ...] | None = None
    start: int | float = 0
    end: int | float = 1.0


def split_tags(prompt: str, argument: str = "prompt") -> tuple[str, list[Tag]]:
    """Return a prompt without its tags, and the tags. Raises InputError, for `argument`, for one that is not in order.

    A backslash before `<` makes it text, here as elsewhere in prompts.
    """
    tags: list[Tag] = []

    def take(match: re.Match[str]) -> str:
        if match[2] is None:
            return match[0]
        tags.append(_read(match[2], partial(_error, argument, prompt, match[0])))
        return ""

    return TAG.sub(take, prompt), tags


def read_tags(prompt: str, syntax: str, argument: str = "prompt") -> tuple[str, list[Tag]]:
    """Do as `split_tags` where the syntax of prompts has tags; where it has none, they are text."""
    return split_tags(prompt, argument) if syntax in TAGGED else (prompt, [])


def written(name: str, text: float, unet: float) -> str:
    """Return the tag of an adapter."""
    same = f"{text:g}" if text == unet else f"{text:g}:{unet:g}"
    return f"<lora:{name}:{same}>"


def _read(inside: str, error: partial[InputError]) -> Tag:
    name, *parts = inside.split(":")
    if not name.strip():
        raise error("has no name")
    values: dict[str, str] = {}
    for place, part in enumerate(parts):
        key, equals, value = part.partition("=")
        key = key.strip() if equals else ("te", "unet", "dyn")[min(place, 2)]
        if key == "dyn":
            raise error("asks for a part of the rank, which jaxl does not take; leave that out")
        if key not in NAMES or key in values or place > 8:
            raise error(f"has {shortened(part)}, where only te, unet and {', '.join(NAMES[2:])} are known, each once")
        values[key] = (value if equals else part).strip()
    number = partial(_number, error)
    text = number(values.get("te", "1"))
    blocks = values.get("lbw")
    start, _, end = values["step"].partition("-") if "step" in values else (values.get("start"), "", values.get("stop"))
    return Tag(
        name=name.strip(),
        text=text,
        unet=number(values["unet"]) if "unet" in values else text,
        blocks=None if blocks is None else tuple(number(each.strip()) for each in blocks.split(",")),
        start=_place(error, start or "0"),
        end=_place(error, end or "1.0"),
    )


def _number(error: partial[InputError], text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise error(f"has {shortened(text)} where a number belongs, such as 0.8")
    return value


def _place(error: partial[InputError], text: str) -> int | float:
    value = _number(error, text)
    if value < 0 or ("." in text and value > 1):
        raise error(f"has {shortened(text)}, not a step such as 8 or a share such as 0.4")
    return value if "." in text else int(value)


def _error(argument: str, prompt: str, tag: str, problem: str) -> InputError:
    remedy = "write <lora:name:strength>, or a backslash before what is meant as text"
    return InputError(argument, prompt, f"{shortened(tag)} {problem}; {remedy}")


def shares(tag: Tag, steps: int) -> tuple[float, float]:
    """Return where a tag begins and ends, as shares of so many steps."""
    ends: Sequence[float] = [
        each if isinstance(each, float) else min(each / steps, 1.0) for each in (tag.start, tag.end)
    ]
    return ends[0], max(ends)
