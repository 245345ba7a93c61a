"""What callers pass, turned into one value per image, or into one clear InputError."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxl.call.options import MicroConditioning
from jaxl.errors import InputError
from jaxl.run.bucket import Branch

Kind = TypeVar("Kind")
Read = TypeVar("Read")


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


def seeds_per_image(argument: str, value: Any, batch: int, *, counts: bool = True) -> list[int]:
    """One seed `counts` up from image to image, or does not; a list gives each its own. Seeds are 0 to 2**64 - 1."""
    remedy = "give a whole number from 0 to 2**64 - 1, or one for each image"
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) != batch:
            raise InputError(argument, value, f"{len(value)} seeds for {batch} images; {remedy}")
        seeds = [whole_number(argument, seed, least=0, remedy=remedy) for seed in value]
    else:
        first = whole_number(argument, value, least=0, remedy=remedy)
        seeds = [first + i * counts for i in range(batch)]
    if max(seeds) >= 2**64:
        raise InputError(argument, value, remedy)
    return seeds


def per_image(argument: str, value: Any, batch: int, *, least: float = -math.inf, most: float = math.inf) -> np.ndarray:
    """float32 [B]: one number for all images, or one for each, from `least` to `most`."""
    numbers = _numbers(argument, value, f"give {_range(least, most)}, or one for each image")
    if numbers.ndim > 1 or numbers.size not in (1, batch):
        raise InputError(argument, value, f"{numbers.size} values for {batch} images; give one, or one for each image")
    if (numbers < least).any() or (numbers > most).any():
        raise InputError(argument, value, f"give {_range(least, most)}")
    return np.broadcast_to(numbers.reshape(-1), (batch,)).copy()


def lists_per_image(
    argument: str, value: Any, kind: type[Kind], read: Callable[[Kind], Read], images: int, each: int
) -> list[list[Read]]:
    """Return for each image a list of what `read` makes, once, of all that is given for it.

    `value` is one of a kind, a list of them for all images, or a list of such lists: one for each image, or for each
    prompt, which has `each` images. Raises InputError for what is of another kind.
    """
    remedy = f"give a list of `jaxl.{kind.__name__}`, or one such list for each image"
    given: Any = [] if value is None else [value] if isinstance(value, kind) else value
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(argument, value, remedy)
    lists = list(given) if given and all(isinstance(own, (list, tuple)) for own in given) else [given]
    if len(lists) not in (1, images // each, images):
        raise InputError(argument, value, f"{len(lists)} lists for {images} images; give one, or one for each image")
    for other in (one for own in lists for one in own if not isinstance(one, kind)):
        raise InputError(argument, other, remedy)
    made = [list(map(read, own)) for own in lists]
    return [made[i * len(made) // images] for i in range(images)]


def guidance_per_step(value: Any, batch: int, steps: int) -> np.ndarray:
    """float32 [B, steps]: a scale, one for each image, or, in two dimensions, [1 or B, steps], one for each step."""
    numbers = _numbers("guidance_scale", value, "give a finite number, one for each image, or [images, steps]")
    if numbers.ndim < 2:
        return np.repeat(per_image("guidance_scale", value, batch)[:, None], steps, axis=1)
    if numbers.ndim > 2 or numbers.shape[0] not in (1, batch) or numbers.shape[1] != steps:
        raise InputError("guidance_scale", numbers.shape, f"the shape must be ({batch}, {steps}): images, steps")
    return np.broadcast_to(numbers, (batch, steps)).copy()


def share(argument: str, value: Any) -> float:
    """A number from 0 to 1."""
    number = _number(argument, value)
    if not 0 <= number <= 1:
        raise InputError(argument, value, "give a number from 0 to 1")
    return number


def interval(argument: str, value: Any) -> tuple[float, float]:
    """Two shares, the lower first."""
    start, end = _pair(argument, value)
    if not 0 <= start < end <= 1:
        raise InputError(argument, value, "give the start and the end, from 0 to 1, the start below the end")
    return start, end


def _numbers(argument: str, value: Any, remedy: str) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InputError(argument, value, remedy) from None
    if not np.isfinite(numbers).all():
        raise InputError(argument, value, remedy)
    return numbers


def _range(least: float, most: float) -> str:
    if math.isinf(least):
        return "a finite number"
    return f"a number of at least {least:g}" if math.isinf(most) else f"a number from {least:g} to {most:g}"


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


def time_ids(micro: MicroConditioning, height: int, width: int, count: int) -> dict[Branch, np.ndarray]:
    """The size ids of the negative and of the positive branch, float32 [count]; 6 of them, or 5 for the refiner."""
    positive = {
        "original_size": micro.get("original_size", (height, width)),
        "crops_coords_top_left": micro.get("crops_coords_top_left", (0, 0)),
        "target_size": micro.get("target_size", (height, width)),
    }
    ids: dict[Branch, np.ndarray] = {}
    for branch, score in ((Branch.NEGATIVE, 2.5), (Branch.POSITIVE, 6.0)):
        row: list[float] = []
        prefix = branch.prefix
        for name, default in positive.items():
            if name != "target_size" or count == 6:
                row += _pair(prefix + name, micro.get(prefix + name, default))
        if count == 5:
            row.append(_number(f"{prefix}aesthetic_score", micro.get(f"{prefix}aesthetic_score", score)))
        ids[branch] = np.asarray(row, np.float32)
    return ids


def _pair(argument: str, value: Any) -> list[float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(argument, value, "give two numbers")
    return [_number(argument, number) for number in value]


def _number(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise InputError(argument, value, "give finite numbers")
    return float(value)
