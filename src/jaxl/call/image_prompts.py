"""The image prompts of each image: IP-Adapters with their pictures, and the places that a batch has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxl.call.arguments import lists_per_image
from jaxl.call.controls import acting, check_shape
from jaxl.call.image_prompt import ImagePrompt
from jaxl.call.images import binarize, fit, read_image
from jaxl.config import UNetConfig, VisionConfig
from jaxl.errors import InputError, nearest
from jaxl.nn.unet import transformer_sizes
from jaxl.run.image_prompts import IPAdapter

# of each channel, in the pictures that CLIP was trained on
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
# how many times its shorter side a picture may be long; the whole of it is scaled before its middle is cut out
MOST_NARROW = 16


@dataclass(frozen=True, eq=False)
class Shown:
    """An image prompt with its adapter, with its pictures as the encoder takes them, and with its mask."""

    adapter: IPAdapter
    prompt: ImagePrompt
    pictures: tuple[np.ndarray, ...]
    mask: Image.Image | None


@dataclass(frozen=True, eq=False)
class PlannedImagePrompt:
    """What cross-attention reads for one image (`run.image_prompts`).

    `strengths` [L] are those of the U-Net's transformers; `masks` [h, w] are of each size that they see.
    """

    shown: Shown
    strengths: np.ndarray
    masks: tuple[np.ndarray, ...]
    first: int
    end: int

    @property
    def tokens(self) -> int:
        """The number of tokens that its pictures have together."""
        return len(self.shown.pictures) * self.shown.adapter.config.tokens


def read_image_prompts(value: Any, known: Mapping[str, IPAdapter], images: int, each: int) -> list[list[Shown]]:
    """Return what is asked for each image. `value` is a list for all images, or one for each image or prompt.

    A prompt has `each` images. Raises InputError for a name that is not in `known`, for a picture that is none, and for
    what is no image prompt.
    """
    return lists_per_image("image_prompts", value, ImagePrompt, lambda prompt: _read(prompt, known), images, each)


def _read(prompt: ImagePrompt, known: Mapping[str, IPAdapter]) -> Shown:
    if prompt.name not in known:
        remedy = f"no IP-Adapter of this name is loaded; {nearest(str(prompt.name), known)}"
        if not known:
            remedy = "no IP-Adapter is loaded; add one with Pipeline.add_ip_adapter or --ip-adapter, or leave it out"
        raise InputError("image_prompts", prompt.name, remedy)
    mask = None if prompt.mask is None else read_image(prompt.mask, "mask").convert("L")
    pictures = tuple(read_image(picture, "image_prompts") for picture in prompt.pictures)
    for wide, tall in (picture.size for picture in pictures):
        if max(wide, tall) > MOST_NARROW * min(wide, tall):
            remedy = f"of image prompt {prompt.name!r}: its middle alone is seen; cut it nearer to a square"
            raise InputError("images", f"{wide}x{tall} pixels", remedy)
    adapter = known[prompt.name]
    return Shown(adapter, prompt, tuple(to_pixels(picture, adapter.config.encoder) for picture in pictures), mask)


def plan_image_prompts(
    asked: Sequence[Shown],
    unet: UNetConfig,
    size: tuple[int, int],
    latents: tuple[int, int],
    first: int,
    numbers: Sequence[int],
    rows: int,
) -> tuple[PlannedImagePrompt, ...]:
    """Return what an image of this size (width, height) reads.

    Its rows from `first` on are these `numbers` of so many.

    `latents` is the size (height, width) of its latents. Raises InputError for blocks that the U-Net lacks, and for a
    mask of another shape.
    """
    planned = []
    sizes = transformer_sizes(unet, *latents)
    for shown in asked:
        prompt = shown.prompt
        strengths = prompt.factors(unet.transformers)
        if prompt.strength and not any(strengths):
            remedy = f"of image prompt {prompt.name!r}: this U-Net has no such blocks, or all of them get 0"
            raise InputError("blocks", prompt.blocks, remedy)
        mask = None
        if shown.mask is not None:
            check_shape("mask", shown.mask, *size, f"the mask of {prompt.name!r}")
            mask = binarize(fit(shown.mask, *size))
        masks = tuple(np.ones(each, np.float32) if mask is None else bicubic(mask, *each) for each in sizes)
        planned.append(
            PlannedImagePrompt(
                shown,
                np.asarray(strengths, np.float32),
                masks,
                *acting(prompt.start, prompt.end, first, numbers, rows),
            )
        )
    # those with most tokens first, so that the places of a batch need the least room
    return tuple(sorted(planned, key=lambda each: -each.tokens))


def places_of(prompts: Sequence[Sequence[PlannedImagePrompt]]) -> tuple[int, ...]:
    """Return the places of a batch, by the tokens that each has room for: the next power of two."""
    most = max(map(len, prompts))
    needed = [max(own[place].tokens for own in prompts if len(own) > place) for place in range(most)]
    return tuple(1 << (tokens - 1).bit_length() for tokens in needed)


def to_pixels(picture: Image.Image, cfg: VisionConfig) -> np.ndarray:
    """Return the middle of a picture as CLIP's encoder takes it, float32 [1, S, S, 3].

    The shorter side is scaled to S bicubically and the middle cut out, as in transformers' `CLIPImageProcessor`.
    """
    side, (width, height) = cfg.image_size, picture.size
    short = min(width, height)
    wide, tall = side * width // short, side * height // short
    left, top = (wide - side) // 2, (tall - side) // 2
    middle = picture.resize((wide, tall), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return ((np.asarray(middle).astype(np.float32) / 255.0 - MEAN) / DEVIATION)[None]


def bicubic(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask [H, W] at another size, as `torch.nn.functional.interpolate` does with mode bicubic."""
    down, across = _cubic(mask.shape[0], height), _cubic(mask.shape[1], width)
    return (down @ mask.astype(np.float64) @ across.T).astype(np.float32)


def _cubic(old: int, new: int) -> np.ndarray:
    """Return the weights [new, old] of cubic convolution with a = -0.75 (Keys 1981), without smoothing."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        at = np.floor(places) + offset
        x = np.abs(places - at)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights
