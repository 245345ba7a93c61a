"""Preprocessors as sd-webui-controlnet knows them: modules with up to three sliders, and types of control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxl.call.unit_texts import IP_MODULE, NONE
from jaxl.errors import nearest
from jaxl.preprocessors.preprocessor import LEAST_RESOLUTION, MOST_RESOLUTION, Preprocessor
from jaxl.server.a1111.options import refusal
from jaxl.server.preprocess import OFFERED

NO_MODULE = (None, "", NONE, "None")
MODULES: Mapping[str, Preprocessor] = {name: each for each in OFFERED.values() for name in each.modules}
USUAL_RESOLUTION = 512
# what sd-webui-controlnet and Forge call the encoders of IP-Adapters, each of which knows its own here
IP_MODULES = (
    *(IP_MODULE, "ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith"),
    *("CLIP-ViT-H (IPAdapter)", "CLIP-ViT-bigG (IPAdapter)"),
)
IP_TYPE = "IP-Adapter"

# types of control, and what names of networks have in them that are for one; a name with none of these may be for all
TYPES: Mapping[str, Sequence[str]] = {
    **{kind: (kind.lower(),) for kind in ("Blur", "Canny", "Depth", "Inpaint", "Lineart", "MLSD")},
    "NormalMap": ("normal",),
    "OpenPose": ("openpose", "pose"),
    "Recolor": ("recolor",),
    "Scribble": ("scribble", "sketch"),
    "Segmentation": ("seg",),
    "Shuffle": ("shuffle",),
    "Sketch": ("scribble", "sketch"),
    "SoftEdge": ("softedge", "hed", "pidi"),
    "Tile": ("tile", "blur"),
}


def find_module(name: str) -> Preprocessor:
    """Return the preprocessor that a module is. Raises ApiError."""
    if name not in MODULES:
        remedy = f"no preprocessor of this server; {nearest(name, (NONE, *MODULES))}; {NONE} takes the picture as it is"
        raise refusal("module", name, remedy)
    return MODULES[name]


def facts_of(module: Preprocessor, resolution: int, threshold_a: float, threshold_b: float) -> dict[str, Any]:
    """Return the arguments of `jaxl.preprocess` for a unit's numbers.

    One that is out of bounds is the usual one, as there: clients send numbers for sliders that a module has not.
    """
    facts: dict[str, Any] = {"name": module.name}
    if module.scaled:
        usable = LEAST_RESOLUTION <= resolution <= MOST_RESOLUTION
        facts["resolution"] = resolution if usable else USUAL_RESOLUTION
    for slider, value in zip(module.sliders, (threshold_a, threshold_b), strict=False):
        number = int(value) if slider.whole else value
        facts[slider.name] = slider.read(number if number in slider else slider.default)
    return facts


def detail(module: Preprocessor) -> dict[str, Any]:
    """Return the sliders of a module."""
    resolution = {"name": "Resolution", "value": USUAL_RESOLUTION, "min": LEAST_RESOLUTION, "max": MOST_RESOLUTION}
    sliders = [
        {"name": each.slider, "value": each.default, "min": each.least, "max": each.most} for each in module.sliders
    ]
    return {"model_free": False, "sliders": [*([resolution] if module.scaled else []), *sliders]}


def control_types(networks: Sequence[str], adapters: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return for each type of control its modules and networks, and which of them a client takes first.

    `adapters` are IP-Adapters, which are a type of their own.
    """
    found = {kind: _type(kind, marks, networks) for kind, marks in {"All": (), **TYPES}.items()}
    if adapters:
        found["All"]["module_list"] += IP_MODULES[:1]
        found["All"]["model_list"] += adapters
        found[IP_TYPE] = {
            "module_list": [NONE, *IP_MODULES],
            "model_list": ["None", *adapters],
            "default_option": IP_MODULE,
            "default_model": adapters[0],
        }
    return found


def _type(kind: str, marks: Sequence[str], networks: Sequence[str]) -> dict[str, Any]:
    every = [mark for each in TYPES.values() for mark in each]
    modules = [each.modules[-1] for each in OFFERED.values() if not marks or kind in each.types]
    fitting = [each for each in networks if not marks or _has(each, marks) or not _has(each, every)]
    return {
        "module_list": [NONE, *modules],
        "model_list": ["None", *fitting],
        # the type All has no first
        "default_option": next(iter(modules), NONE) if marks else NONE,
        "default_model": next(iter(fitting), "None") if marks else "None",
    }


def _has(name: str, marks: Sequence[str]) -> bool:
    return any(mark in name.lower() for mark in marks)
