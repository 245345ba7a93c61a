"""The starts of images: pictures, masks and latents, checked and brought to the size of the bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxl.call import arguments
from jaxl.call.images import (
    Region,
    binarize,
    crop_region,
    fit,
    mask_to_latents,
    overlay,
    read_image,
    read_mask,
    to_array,
)
from jaxl.call.options import STRENGTH, Start
from jaxl.call.sizes import nearest_bucket
from jaxl.errors import InputError, nearest
from jaxl.run.model import Model

# the share of the steps that is run where a caller does not say
STRENGTH_WITH_MASK, STRENGTH_OF_REFINER = 1.0, 0.3

SourceImage = Image.Image | np.ndarray


def _share_of(asked: int, strength: float) -> int:
    """Return A1111's share of the steps that are asked for, which is never all of them."""
    return int(asked * min(strength, 0.999))


# `strength_steps`: how many steps are run from a picture, by the number of the schedule, the number that was asked for
# and the strength; a schedule of which the "whole" is to be run has more than that
STRENGTH_STEPS: Mapping[str, Callable[[int, int, float], int]] = {
    "part": lambda steps, asked, strength: int(steps * strength),
    "part+1": lambda steps, asked, strength: steps - asked + _share_of(asked, strength) + 1,
    "part+0": lambda steps, asked, strength: _share_of(asked, strength),
    "part-1": lambda steps, asked, strength: _share_of(asked, strength) - 1,
    "whole": lambda steps, asked, strength: asked,
    "whole-1": lambda steps, asked, strength: asked - 1,
    "whole-2": lambda steps, asked, strength: asked - 2,
}
# what a second pass does, where the first one would do this from a picture; for all else it is the whole
OF_SECOND_PASS: Mapping[str, str] = {"part+0": "whole-1", "part-1": "whole-2"}


@dataclass(frozen=True, eq=False)
class Mask:
    """`latents` float32 [h, w, 1] is 1 where the picture is repainted; `masked` is the picture without that part."""

    latents: np.ndarray
    masked: np.ndarray


@dataclass(frozen=True, eq=False)
class Picture:
    """The start of an image: pixels [1, H, W, 3] in -1..1, or latents [1, h, w, C] if `encoded`; float32."""

    array: np.ndarray
    encoded: bool = False
    mask: Mask | None = None


@dataclass(frozen=True, eq=False)
class Paste:
    """Puts a generated image back where `padding_mask_crop` cut it out of the picture."""

    picture: Image.Image
    mask: Image.Image
    region: Region

    def __call__(self, generated: Image.Image) -> Image.Image:
        return overlay(self.mask, self.picture, generated, self.region)


def read_sources(start: Start, model: Model, prompts: int) -> list[SourceImage] | None:
    """Read `image` as RGB pictures or latents [1, h, w, C], one for all prompts or one for each; None without."""
    value = start.get("image")
    if value is None:
        for name, other in start.items():
            if name != "denoising_end":
                raise InputError(name, other, "needs a picture to start from; pass `image` too")
        return None
    channels = model.vae.latent_channels
    if isinstance(value, np.ndarray) and value.ndim == 4 and value.shape[-1] == channels:
        if value.shape[0] not in (1, prompts):
            raise InputError("image", value.shape, f"{value.shape[0]} latents for {prompts} prompts")
        if not np.isfinite(value).all():
            raise InputError("image", value.shape, "the latents hold NaN or infinity")
        return list(np.asarray(value, np.float32)[:, None])
    return [read_image(each, "image") for each in _per_prompt("image", value, prompts)]


def default_size(sources: Sequence[SourceImage] | None, model: Model) -> tuple[int, int]:
    """Return width and height where the caller gives none: the model's own, or the nearest to the picture's aspect."""
    if not sources:
        return model.default_size, model.default_size
    first = sources[0]
    if isinstance(first, np.ndarray):
        return first.shape[2] * model.vae.factor, first.shape[1] * model.vae.factor
    return nearest_bucket(*first.size, model.default_size)


def read_starts(
    start: Start, sources: list[SourceImage], model: Model, prompts: int, width: int, height: int
) -> tuple[list[Picture], list[Paste] | None]:
    """Return the pictures at the size of the image, and their pastes, one for all prompts or one for each."""
    masks, pad = start.get("mask"), start.get("padding_mask_crop")
    if pad is not None:
        pad = arguments.whole_number("padding_mask_crop", pad, least=0)
        if masks is None:
            raise InputError("padding_mask_crop", pad, "needs a mask; pass `mask` too")
    if masks is None:
        return [_picture(source, width, height, model) for source in sources], None
    pictures, pastes = [], []
    values = _per_prompt("mask", masks, prompts)
    for i in range(max(len(sources), len(values))):
        source, value = sources[i % len(sources)], values[i % len(values)]
        if isinstance(source, np.ndarray):
            raise InputError("mask", type(value).__name__, "`image` is latents; a mask needs a picture")
        mask = read_mask(value, "mask", source.size)
        region = None if pad is None else crop_region(mask, width, height, pad)
        repaint = binarize(fit(mask, width, height, region))
        pixels = to_array(fit(source, width, height, region))[None]
        factor = model.vae.factor
        latent_mask = mask_to_latents(repaint, height // factor, width // factor)[..., None]
        if not latent_mask.any():
            shown = f"{source.width}x{source.height} pixels"
            raise InputError("mask", shown, "too thin to repaint; paint a wider area")
        pictures.append(Picture(pixels, mask=Mask(latent_mask, pixels * (repaint < 0.5)[None, ..., None])))
        if region is not None:
            pastes.append(Paste(source, mask, region))
    return pictures, pastes or None


def lengthened(steps: int | None, start: Start, model: Model, counted: str) -> int | None:
    """Return the steps of the schedule whose last ones are run, where all that are asked for are to be.

    counted: the option `strength_steps`. Raises InputError for another.
    """
    if counted not in STRENGTH_STEPS:
        raise InputError("strength_steps", counted, nearest(str(counted), STRENGTH_STEPS))
    if not runs_whole(counted) or steps is None or "image" not in start or "denoising_start" in start:
        return steps
    strength = arguments.share("strength", start.get("strength", default_strength(start, model)))
    return int(steps / strength) if strength else steps


def runs_whole(counted: str) -> bool:
    """Return whether all steps that are asked for are run from a picture, or all but a few."""
    return counted.startswith("whole")


def span(
    start: Start, model: Model, times: np.ndarray, counted: str = "part", asked: int | None = None
) -> tuple[int, int]:
    """Return the first step to run and the one after the last, of a schedule whose steps begin at `times`.

    counted: how many are run from a picture, as `strength_steps` says; asked: those that the caller wants.
    """
    steps, total = len(times), model.scheduler.noise.num_train_timesteps
    begin = arguments.share("denoising_start", start.get("denoising_start", 0.0))
    end = arguments.share("denoising_end", start.get("denoising_end", 1.0))
    if model.scheduler.noise.edm is not None and (begin, end) != (0, 1):
        name = "denoising_end" if end != 1 else "denoising_start"
        raise InputError(name, start.get(name), "this model's noise has no timesteps to hand over at; leave it out")
    if begin >= end:
        raise InputError("denoising_start", begin, f"must lie below denoising_end, which is {end:g}")
    # shares of the noise levels, not of the steps, so that two models with other spacings hand over at the same level
    # the first below the level; a straight path begins at `total` itself, and a restart goes back up
    below = (np.append(times < round(total - bound * total), True) for bound in (begin, end))
    skip, stop = (int(each.argmax()) for each in below)
    skip = skip if begin else 0
    stop = steps if end == 1 else stop
    if "strength" in start or ("image" in start and "denoising_start" not in start):
        strength = arguments.share("strength", start.get("strength", default_strength(start, model)))
        if "denoising_start" in start:
            raise InputError("strength", strength, "leave it out: denoising_start says where to begin")
        way = "part" if runs_whole(counted) and not (asked and strength) else counted
        made = STRENGTH_STEPS[way](steps, asked or steps, strength)
        # the default share runs at least one step, for models of one step
        skip = steps - max(made, "strength" not in start)
    if skip >= stop:
        name = next(name for name in ("denoising_end", "strength", "denoising_start") if name in start)
        way = "lower" if name == "denoising_start" else "raise"
        raise InputError(name, start[name], f"leaves none of the {steps} steps to run; {way} it, or take more steps")
    return skip, stop


def default_strength(start: Start, model: Model) -> float:
    if "mask" in start:
        return STRENGTH_WITH_MASK
    return STRENGTH_OF_REFINER if model.is_refiner else STRENGTH


def _picture(source: SourceImage, width: int, height: int, model: Model) -> Picture:
    if isinstance(source, Image.Image):
        return Picture(to_array(fit(source, width, height))[None])
    wanted = (1, height // model.vae.factor, width // model.vae.factor, model.vae.latent_channels)
    if source.shape != wanted:
        raise InputError("image", source.shape, f"the latents' shape must be {wanted} for {width}x{height} pixels")
    return Picture(source, encoded=True)


def _per_prompt(argument: str, value: Any, prompts: int) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value]
    if len(value) != prompts:
        raise InputError(argument, f"{len(value)} pictures", f"give one, or one for each of the {prompts} prompts")
    return list(value)
