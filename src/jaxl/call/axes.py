"""The axes of a grid of pictures: an option of a call with several values, written as A1111's X/Y/Z plot has them."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxl.call.infotext import LABELS
from jaxl.call.options import DrawOptions
from jaxl.call.sizes import check_size
from jaxl.errors import InputError, nearest

MOST_PICTURES = 400
# what is searched for in the prompts, and replaced
REPLACED = "prompt s/r"
# what is said otherwise, or makes no pictures
NO_AXIS = ("num_images", "width", "height", "denoising_start", "denoising_end")
# what A1111 calls options, beyond what its settings in files have
ALSO = {
    "sampler": "scheduler",
    "denoising": "strength",
    "var. seed": "variation_seed",
    "var. strength": "variation_strength",
    "negative prompt": "negative_prompt",
    "clip skip": "clip_skip",
}

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*([0-9]{{1,4}})\s*\])?\s*")


Kind = type[int] | type[float] | type[str]


def _kinds() -> Mapping[str, Kind]:
    """Return the options whose values are numbers or texts, and which; not those with pictures, lists and the like."""
    found: dict[str, Kind] = {"prompt": str, "guidance_scale": float}
    for name, hint in get_type_hints(DrawOptions).items():
        kinds = [hint, *(get_args(hint) if get_origin(hint) in (Union, UnionType) else ())]
        plain = [str if get_origin(kind) is Literal else kind for kind in kinds]
        own: list[Kind] = [kind for kind in (float, int, str) if kind in plain]
        if own and name not in NO_AXIS:
            found.setdefault(name, own[0])
    return found


KINDS = _kinds()
NAMES: Mapping[str, str] = {
    **{name: name for name in (*KINDS, "size", REPLACED)},
    **{label.lower(): name for name, label in LABELS.items() if name in KINDS},
    **ALSO,
}


@dataclass(frozen=True)
class Axis:
    """An option with its values, or texts of which the first is replaced in the prompts (`REPLACED`)."""

    name: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, argument: str, text: str) -> Axis:
        """Read `NAME=VALUES`: an option of `Pipeline.generate`, or A1111's name for it, and values between commas.

        Numbers may be ranges: `1-5`, `1-9(+2)` or `1-9[3]`, with the distance or the number of values. A text with a
        comma stands in double quotes. Raises InputError, naming `argument`.
        """
        said, equals, values = text.partition("=")
        key = said.strip().lower()
        name = NAMES.get(key) or NAMES.get(key.replace(" ", "_"))
        if not equals:
            raise InputError(argument, text, "give an option and its values, such as steps=10-30(+10)")
        if name is None:
            raise InputError(argument, said, nearest(key, sorted(KINDS.keys() | {"size", REPLACED})))
        parts = [each.strip() for each in next(csv.reader([values], skipinitialspace=True), [])]
        if not any(parts):
            raise InputError(argument, text, "give values, with commas between them")
        if name == "size":
            return cls(name, tuple(check_size(argument, part) for part in parts))
        if name == REPLACED and not parts[0]:
            raise InputError(argument, text, "the first text is searched for, so it cannot be empty")
        read = _reader(argument, KINDS.get(name, str))
        return cls(name, tuple(itertools.chain.from_iterable(map(read, parts))))

    def options(self, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with one of the values. Raises InputError for a text that no prompt has."""
        if self.name == "size":
            return {**options, "width": value[0], "height": value[1]}
        if self.name != REPLACED:
            return {**options, self.name: value}
        wanted = self.values[0]
        prompts = {name: options.get(name) or "" for name in ("prompt", "negative_prompt")}
        if not any(wanted in text for text in prompts.values()):
            raise InputError(REPLACED, wanted, "it is in none of the prompts, so nothing would change")
        changed = {name: text.replace(wanted, value) for name, text in prompts.items() if wanted in text}
        return {**options, **changed}

    def label(self, value: Any) -> str:
        """Return what a row or column is called."""
        if self.name == "size":
            return f"{value[0]}x{value[1]}"
        if self.name in (REPLACED, "prompt", "scheduler"):
            return str(value)
        said = LABELS.get(self.name, self.name.replace("_", " "))
        return f"{said}: {value:g}" if isinstance(value, float) else f"{said}: {value}"


def cells(axes: Sequence[Axis], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the options of each picture, the first axis running fastest. Raises InputError for too many."""
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_PICTURES:
        raise InputError("x", f"{count} pictures", f"a grid has at most {MOST_PICTURES}; give fewer values")
    twice = [axis.name for axis in axes if [each.name for each in axes].count(axis.name) > 1]
    if twice and twice[0] != REPLACED:
        raise InputError("y", twice[0], "it is an axis already; give another option")
    made = []
    for values in itertools.product(*(axis.values for axis in reversed(axes))):
        own = dict(options)
        for axis, value in zip(reversed(axes), values, strict=True):
            own = axis.options(value, own)
        made.append(own)
    return made


def _reader(argument: str, kind: Kind) -> Callable[[str], list[Any]]:
    """Return what reads a value of a kind, or a range of numbers."""

    def read(part: str) -> list[Any]:
        try:
            return [kind(part)]
        except ValueError:
            pass
        match = _RANGE.fullmatch(part)
        if match is None:
            what = "whole numbers" if kind is int else "numbers"
            raise InputError(argument, part, f"give {what}, or a range such as 1-5, 1-9(+2) or 1-9[3]")
        first, last = float(match[1]), float(match[2])
        if match[4] is not None:
            count = int(match[4])
            step = (last - first) / max(count - 1, 1)
        else:
            step = float(match[3] or (1 if first <= last else -1))
            count = math.floor((last - first) / step + 1e-9) + 1 if step else 0
        if not 1 <= count <= MOST_PICTURES:
            raise InputError(argument, part, f"a range of {count} values; give 1 to {MOST_PICTURES}")
        return [kind(round(first + i * step, 10)) for i in range(count)]

    return read
