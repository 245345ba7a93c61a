"""Controls in A1111's text, as sd-webui-controlnet writes its units.

A unit is `ControlNet 0: "Module: canny, Model: edges, ..."`. Its `scripts/infotext.py` has the names. A text lacks
the picture and the mode of a union.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from jaxl.call.control import CONTROL_MODES
from jaxl.preprocessors.registry import PREPROCESSORS

UNIT = re.compile(r"ControlNet [0-9]{1,2}")
SLIDERS = ("Threshold A", "Threshold B")
# which a value cannot have
MARKS = {ord(mark): None for mark in ":,"}
NUMBERS = {"strength": "Weight", "start": "Guidance Start", "end": "Guidance End"}
USUAL = {"strength": 1.0, "start": 0.0, "end": 1.0}


def unit_texts(controls: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the pairs of the line of settings; `controls` are the facts of a `Control` each."""
    return {f"ControlNet {i}": _text(each) for i, each in enumerate(controls)}


def take_units(pairs: dict[str, str]) -> list[dict[str, Any]]:
    """Take the units out of such pairs, and return them by the names of `Control`, as far as they can be read."""
    found = []
    for label in [each for each in pairs if UNIT.fullmatch(each)]:
        if facts := _read(pairs[label]):
            found.append(facts)
            del pairs[label]
    return found


def _text(facts: Mapping[str, Any]) -> str:
    made = facts.get("preprocess") or {}
    module = PREPROCESSORS.get(str(made.get("name")))
    sliders = zip(SLIDERS, module.sliders if module else (), strict=False)
    numbers = {label: float(facts.get(name, USUAL[name])) for name, label in NUMBERS.items()}
    weighting = facts.get("weighting", "balanced")
    told = {
        "Module": module.modules[0] if module and module.modules else "none",
        "Model": str(facts.get("name")).translate(MARKS),
        "Weight": numbers.pop("Weight"),
        "Resize Mode": facts.get("resize_mode", "Crop and Resize"),
        **({"Processor Res": made["resolution"]} if made.get("resolution") else {}),
        **{label: float(made.get(each.name, each.default)) for label, each in sliders},
        **numbers,
        "Pixel Perfect": facts.get("pixel_perfect", False),
        # what diffusers calls guess mode was called so there
        "Control Mode": CONTROL_MODES.get(weighting, CONTROL_MODES["control"]),
    }
    return ", ".join(f"{name}: {value}" for name, value in told.items())


def _read(text: str) -> dict[str, Any] | None:
    told = dict(part.split(": ", 1) for part in text.split(", ") if ": " in part)
    name = told.get("Model", "").partition(" [")[0]
    if name in ("", "None"):
        return None
    facts: dict[str, Any] = {"name": name, **_numbers(told, NUMBERS)}
    for weighting, mode in CONTROL_MODES.items():
        if told.get("Control Mode") == mode:
            facts["weighting"] = weighting
    module = next((each for each in PREPROCESSORS.values() if told.get("Module") in each.modules), None)
    if module is not None:
        labels = {each.name: label for label, each in zip(SLIDERS, module.sliders, strict=False)}
        facts["preprocess"] = {"name": module.name, **_numbers(told, {"resolution": "Processor Res", **labels})}
    return facts


def _numbers(told: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for name, label in labels.items():
        with suppress(KeyError, ValueError):
            found[name] = float(told[label])
    return {name: value for name, value in found.items() if math.isfinite(value)}
