"""The extension "Tiled Diffusion" of A1111's web UI, as clients turn it on by its arguments.

They come in the order of its form (https://github.com/pkuliyi2015/multidiffusion-upscaler-for-automatic1111,
`scripts/tilediffusion.py`), with tiles in latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxl.call.tile_texts import LATENT, METHOD
from jaxl.server.a1111.options import refusal
from jaxl.server.errors import ApiError

SCRIPT = "tiled diffusion"
# the places in the form of what counts, and what stands there usually
FORM: Mapping[str, tuple[int, Any]] = {
    "method": (1, METHOD),
    "overwrite_size": (2, False),
    "image_width": (4, 1024),
    "image_height": (5, 1024),
    "tile_width": (6, 96),
    "tile_height": (7, 96),
    "overlap": (8, 48),
    "upscaler_name": (10, "None"),
    "noise_inverse": (12, False),
    "enable_bbox_control": (18, False),
}
NUMBERS = ("image_width", "image_height", "tile_width", "tile_height", "overlap")
# what else it can do, with what to do instead
LACKING: Mapping[str, str] = {
    "method": f"give {METHOD!r}",
    "upscaler_name": "enlarge the picture first, or set enable_hr; give 'None'",
    "noise_inverse": "noise is not inverted; turn it off",
    "enable_bbox_control": "regions have no tiles of their own; turn it off",
}


def tiles_of(scripts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of `Pipeline.generate` that it stands for, none where it is off. Raises ApiError."""
    for name, script in (scripts or {}).items():
        args = script.get("args") if isinstance(script, dict) else script
        if name.lower() == SCRIPT and isinstance(args, list) and args and args[0] not in (False, None):
            return _read(args)
    return {}


def _read(args: list[Any]) -> dict[str, Any]:
    told = {name: args[place] if place < len(args) else usual for name, (place, usual) in FORM.items()}
    for name, remedy in LACKING.items():
        if told[name] not in (FORM[name][1], None):
            raise _refusal(name, told[name], remedy)
    for name in NUMBERS:
        if type(told[name]) is not int or not 0 <= told[name] <= 16384:
            raise _refusal(name, told[name], "give a whole number")
    if told["tile_width"] != told["tile_height"]:
        raise _refusal("tile_height", told["tile_height"], f"tiles are square here; give {told['tile_width']}")
    size = {"width": told["image_width"], "height": told["image_height"]} if told["overwrite_size"] else {}
    return {"tile_size": told["tile_width"] * LATENT, "tile_overlap": told["overlap"] * LATENT, **size}


def _refusal(name: str, value: Any, remedy: str) -> ApiError:
    return refusal(f"alwayson_scripts, {SCRIPT}, {name}", value, remedy)
