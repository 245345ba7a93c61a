"""Pictures for ControlNets, made of other pictures: `jaxl.preprocess`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from jaxl.call.images import MAX_PIXELS, read_image, read_mask
from jaxl.preprocessors.registry import find


def preprocess(
    name: str,
    image: Any,
    *,
    resolution: int | None = None,
    mask: Any = None,
    weights: str | Path | None = None,
    **parameters: float,
) -> Image.Image:
    """Return a picture that a ControlNet takes, such as edges, made of another: for `jaxl.Control(image=...)`.

        jaxl.Control("edges", jaxl.preprocess("canny", "photo.png", low=50, high=150))

    name: canny, lineart_standard, scribble_xdog, invert, threshold, tile, blur, recolor_luminance, recolor_intensity,
        shuffle, inpaint, or a detector of controlnet_aux, such as hed; `jaxl preprocess` lists them with parameters.
    image: a path, a PIL image, or an array. mask: the same, of its size, for inpaint: white where it is painted anew.
    resolution: pixels to which the shorter side is scaled first; by default the picture keeps its size.
    weights: the folder with a detector's files. Nothing is downloaded.

    Raises InputError, for what is not installed too, and CheckpointError for weights that cannot be read.
    """
    chosen = find(name)
    picture = read_image(image, "image")
    painted = None if mask is None else read_mask(mask, "mask", picture.size)
    return chosen.apply(
        picture, parameters, max_pixels=MAX_PIXELS, resolution=resolution, mask=painted, weights=weights
    )
