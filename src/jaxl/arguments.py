"""What callers pass, turned into one value per image, or into one clear InputError."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from jaxl.errors import InputError


class MicroConditioning(TypedDict, total=False):
    """What SDXL was told in training about each picture's origin (arXiv:2307.01952, section 2.2).

    Sizes are (height, width), corners (top, left). `original_size` and `target_size` default to the size of the image,
    `crops_coords_top_left` to (0, 0), and the negative ones, for the unconditional branch, to the positive. The scores
    are the refiner's: 6.0 and 2.5 by default.
    """

    original_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int]
    negative_original_size: tuple[int, int]
    negative_crops_coords_top_left: tuple[int, int]
    negative_target_size: tuple[int, int]
    aesthetic_score: float
    negative_aesthetic_score: float


def whole_number(argument: str, value: Any, *, least: int, most: int | None = None, remedy: str = "") -> int:
    """`value` as an int from `least` to `most`; True and 2.0 are not whole numbers here, NumPy's integers are."""
    remedy = remedy or f"give a whole number {f'of at least {least}' if most is None else f'from {least} to {most}'}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(argument, value, remedy) from None
    if number < least or (most is not None and number > most):
        raise InputError(argument, value, remedy)
    return number


def prompts_per_image(argument: str, value: Any, prompts: int | None, num_images: int) -> list[str]:
    """A prompt, or a list of them (`prompts` of them, if given), each repeated for its `num_images` images."""
    texts = [value] * (prompts or 1) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(argument, value, "give a string, or a list of strings")
    if not texts:
        raise InputError(argument, value, "the list is empty; give at least one prompt")
    if prompts is not None and len(texts) != prompts:
        raise InputError(argument, value, f"{len(texts)} texts for {prompts} prompts; give one, or one for each prompt")
    return [text for text in texts for _ in range(num_images)]


def seeds_per_image(value: Any, batch: int) -> list[int]:
    """One seed counts up from image to image; a list gives each image its own. Seeds are 0 to 2**64 - 1."""
    remedy = "give a whole number from 0 to 2**64 - 1, or one for each image"
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) != batch:
            raise InputError("seed", value, f"{len(value)} seeds for {batch} images; {remedy}")
        seeds = [whole_number("seed", seed, least=0, remedy=remedy) for seed in value]
    else:
        first = whole_number("seed", value, least=0, remedy=remedy)
        seeds = [first + i for i in range(batch)]
    if max(seeds) >= 2**64:
        raise InputError("seed", value, remedy)
    return seeds


def guidance_per_image(value: Any, batch: int) -> np.ndarray:
    """float32 [B]: one scale for all images, or one for each."""
    remedy = "give a finite number, or one for each image"
    try:
        scales = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InputError("guidance_scale", value, remedy) from None
    if scales.ndim > 1 or scales.size not in (1, batch):
        raise InputError("guidance_scale", value, f"{scales.size} values for {batch} images; {remedy}")
    if not np.isfinite(scales).all():
        raise InputError("guidance_scale", value, remedy)
    return np.broadcast_to(scales.reshape(-1), (batch,)).copy()


def image_size(argument: str, value: Any, default: int, factor: int) -> int:
    """A side of the image in pixels: a positive multiple of `factor`, the default where `value` is None."""
    if value is None:
        return default
    remedy = f"give a positive multiple of {factor}"
    size = whole_number(argument, value, least=1, remedy=remedy)
    if size % factor:
        lower = size - size % factor
        near = f"{lower} or {lower + factor}" if lower else f"{factor}"
        raise InputError(argument, value, f"{remedy}, such as {near}")
    return size


def check_latents(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Given initial noise: float32 of the batch's shape, finite."""
    try:
        latents = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InputError("latents", type(value), "give an array of unit-variance noise") from None
    if latents.shape != shape:
        raise InputError("latents", latents.shape, f"the shape must be {shape}: images, height, width, channels")
    if not np.isfinite(latents).all():
        raise InputError("latents", latents.shape, "the array holds NaN or infinity")
    return latents


def time_ids(micro: MicroConditioning, height: int, width: int, count: int) -> np.ndarray:
    """float32 [2, count]: the size ids of the negative and of the positive branch; 6 of them, or 5 for the refiner."""
    unknown = set(micro) - set(MicroConditioning.__annotations__)
    if unknown:
        raise TypeError(f"generate() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    positive = {
        "original_size": micro.get("original_size", (height, width)),
        "crops_coords_top_left": micro.get("crops_coords_top_left", (0, 0)),
        "target_size": micro.get("target_size", (height, width)),
    }
    branches = []
    for prefix, score in (("negative_", 2.5), ("", 6.0)):
        row: list[float] = []
        for name, default in positive.items():
            if name != "target_size" or count == 6:
                row += _pair(prefix + name, micro.get(prefix + name, default))
        if count == 5:
            row.append(_number(f"{prefix}aesthetic_score", micro.get(f"{prefix}aesthetic_score", score)))
        branches.append(row)
    return np.asarray(branches, np.float32)


def _pair(argument: str, value: Any) -> list[float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(argument, value, "give two numbers, height or top first")
    return [_number(argument, number) for number in value]


def _number(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise InputError(argument, value, "give finite numbers")
    return float(value)
