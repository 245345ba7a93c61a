"""Parts of a picture that are drawn anew, each enlarged to a size of the model: what `Pipeline.detail` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from PIL import Image, ImageFilter

from jaxl.call.control import check_number
from jaxl.call.images import read_mask
from jaxl.call.options import DrawOptions
from jaxl.call.region import in_pixels
from jaxl.call.starts import Paste
from jaxl.errors import InputError

MOST_PARTS, MOST_FEATHER = 64, 256.0
# of options, where a caller does not say
DETAIL: DrawOptions = {"strength": 0.4, "padding_mask_crop": 32}
# options that a part has already
TAKEN = ("image", "mask", "num_images", "denoising_start", "denoising_end", "latents", "regions")


def check_parts(
    picture: Image.Image, parts: Any, prompt: str | Sequence[str], feather: float
) -> tuple[list[str], list[Image.Image]]:
    """Return a prompt and a mask with soft edges for each part, a box or a mask, of which there may be one alone.

    Raises InputError, also for parts that the picture does not hold.
    """
    check_number("feather", feather, MOST_FEATHER, "of parts")
    alone = isinstance(parts, Sequence) and all(isinstance(side, (int, float)) for side in parts)
    listed: list[Any] = list(parts) if isinstance(parts, (list, tuple)) and not (alone and parts) else [parts]
    if not 1 <= len(listed) <= MOST_PARTS:
        raise InputError("parts", f"{len(listed)}", f"give 1 to {MOST_PARTS} boxes or masks")
    prompts = [prompt] * len(listed) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(listed):
        raise InputError("prompt", f"{len(prompts)} prompts", f"give one, or one for each of {len(listed)} parts")
    blur = ImageFilter.GaussianBlur(feather)
    return prompts, [_mask(part, picture).filter(blur) for part in listed]


def detail_options(picture: Image.Image, masks: list[Image.Image], options: DrawOptions) -> DrawOptions:
    """Return the options that draw each part as an image of one batch. Raises InputError for options that are taken."""
    for name in TAKEN:
        if options.get(name) is not None:
            raise InputError(name, options.get(name), "each part has its own; leave it out")
    return cast(DrawOptions, {**DETAIL, **options, "image": picture, "mask": masks})


def laid_over(picture: Image.Image, pastes: Sequence[Paste], drawn: Sequence[Image.Image]) -> Image.Image:
    """Return the picture with what was drawn of its parts in their places, one after another."""
    for paste, image in zip(pastes, drawn, strict=True):
        picture = replace(paste, picture=picture)(image)
    return picture


def _mask(part: Any, picture: Image.Image) -> Image.Image:
    if not isinstance(part, (list, tuple)):
        return read_mask(part, "parts", picture.size)
    mask = Image.new("L", picture.size)
    mask.paste(255, in_pixels(part, *picture.size, "of a part"))
    return mask
