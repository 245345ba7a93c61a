"""Controls and image prompts in A1111's text, as sd-webui-controlnet writes its units.

A unit is `ControlNet 0: "Module: canny, Model: edges, ..."`; an IP-Adapter is one as any other. Its
`scripts/infotext.py` has the names. A text lacks the pictures, the mode of a union, and the blocks of an image prompt.
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
# modules: that of pictures which are followed as they are, and those of IP-Adapters there and in Forge
NONE, IP_MODULE = "none", "ip-adapter-auto"
OF_ADAPTERS = re.compile(r"ip-adapter.*|.*\(IPAdapter\)")


def unit_texts(controls: Iterable[Mapping[str, Any]], image_prompts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the pairs of the line of settings; the arguments are the facts of a `Control` or an `ImagePrompt` each."""
    texts = [*(_text(each, NONE) for each in controls), *(_text(each, IP_MODULE) for each in image_prompts)]
    return {f"ControlNet {i}": text for i, text in enumerate(texts)}


def take_units(pairs: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Take the units out of such pairs, as far as they can be read.

    Return `controls` by the names of `Control`, and `image_prompts`, those with a module for IP-Adapters, by those of
    `ImagePrompt`.
    """
    found: dict[str, list[dict[str, Any]]] = {"controls": [], "image_prompts": []}
    for label in [each for each in pairs if UNIT.fullmatch(each)]:
        told = dict(part.split(": ", 1) for part in pairs[label].split(", ") if ": " in part)
        name = told.get("Model", "").partition(" [")[0]
        if name in ("", "None"):
            continue
        facts = {"name": name, **_numbers(told, NUMBERS)}
        if OF_ADAPTERS.fullmatch(told.get("Module", "")):
            found["image_prompts"].append(facts)
        else:
            found["controls"].append(facts | _of_control(told))
        del pairs[label]
    return found


def _text(facts: Mapping[str, Any], usual_module: str) -> str:
    made = facts.get("preprocess") or {}
    module = PREPROCESSORS.get(str(made.get("name")))
    sliders = zip(SLIDERS, module.sliders if module else (), strict=False)
    numbers = {label: float(facts.get(name, USUAL[name])) for name, label in NUMBERS.items()}
    weighting = facts.get("weighting", "balanced")
    told = {
        "Module": module.modules[0] if module and module.modules else usual_module,
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


def _of_control(told: Mapping[str, str]) -> dict[str, Any]:
    """Return what a control alone has."""
    facts: dict[str, Any] = {}
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
