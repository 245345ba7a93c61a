"""Pictures and masks on their way into the latents and back, to the pixel as diffusers has them."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter

from jaxl.call.images import (
    binarize,
    crop_region,
    fit,
    mask_to_latents,
    overlay,
    read_image,
    read_mask,
    to_array,
)

# as StableDiffusionXLInpaintPipeline makes them
PICTURES = VaeImageProcessor(vae_scale_factor=8)
MASKS = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)

SIZES = [(100, 70), (70, 100), (64, 64), (33, 257), (256, 31), (7, 5)]
TARGETS = [(64, 64), (96, 40), (40, 104), (128, 128)]


def a_picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def a_mask(size: tuple[int, int], seed: int, soft: bool) -> Image.Image:
    """A white box, with grey borders if it is soft."""
    rng = np.random.default_rng(seed)
    width, height = size
    left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
    right, bottom = int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
    values = np.zeros((height, width), np.uint8)
    values[top:bottom, left:right] = 255
    mask = Image.fromarray(values)
    if soft:
        blurred = mask.filter(ImageFilter.GaussianBlur(2))
        mask = blurred if np.asarray(blurred).max() >= 128 else mask
    return mask


def theirs(processor: Any, image: Image.Image, target: tuple[int, int], **options: Any) -> np.ndarray:
    found = processor.preprocess(image, width=target[0], height=target[1], **options)
    return found[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_resized(size: tuple[int, int], target: tuple[int, int]) -> None:
    image, mask = read_image(a_picture(size), "image"), read_mask(a_mask(size, 1, True), "mask", size)
    np.testing.assert_array_equal(to_array(fit(image, *target)), theirs(PICTURES, image, target))
    np.testing.assert_array_equal(binarize(fit(mask, *target)), theirs(MASKS, mask, target)[..., 0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_masks_of_other_modes(mode: str) -> None:
    """diffusers turns a mask to grey after it is resized."""
    mask = a_mask((100, 70), 3, True).convert(mode)
    ours = binarize(fit(read_mask(mask, "mask", mask.size), 96, 64))
    np.testing.assert_array_equal(ours, theirs(MASKS, mask, (96, 64))[..., 0])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_cropped_and_put_back(size: tuple[int, int], target: tuple[int, int], soft: bool) -> None:
    """padding_mask_crop from end to end: region, crop, fill, and what is pasted back."""
    image, generated = a_picture(size), a_picture(target, 2)
    for seed in range(4):
        mask = read_mask(a_mask(size, seed, soft), "mask", size)
        for pad in (0, 3, 32):
            region = crop_region(mask, *target, pad)
            assert region == MASKS.get_crop_region(mask, *target, pad=pad)
            options: dict[str, Any] = {"resize_mode": "fill", "crops_coords": region}
            picture = theirs(PICTURES, image, target, **options)
            repaint = theirs(MASKS, mask, target, **options)[..., 0]
            np.testing.assert_array_equal(to_array(fit(image, *target, region)), picture)
            np.testing.assert_array_equal(binarize(fit(mask, *target, region)), repaint)
            np.testing.assert_array_equal(
                np.asarray(overlay(mask, image, generated, region)),
                np.asarray(PICTURES.apply_overlay(mask, image, generated, region)),
            )


@pytest.mark.parametrize("soft", [False, True])
def test_overlay_of_the_whole_picture(soft: bool) -> None:
    size = (100, 70)
    mask, image, generated = a_mask(size, 5, soft), a_picture(size), a_picture(size, 2)
    np.testing.assert_array_equal(
        np.asarray(overlay(mask, image, generated)), np.asarray(PICTURES.apply_overlay(mask, image, generated))
    )


def test_mask_to_latents() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width, h, w = (int(n) for n in rng.integers(1, 200, 4))
        mask = rng.integers(0, 2, (height, width)).astype(np.float32)
        expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size=(h, w))[0, 0].numpy()
        np.testing.assert_array_equal(mask_to_latents(mask, h, w), expected)
