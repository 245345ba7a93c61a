"""Preprocessors that work pixel by pixel, or blur: with Pillow and NumPy alone."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

# of linear light, and where CIE's lightness leaves its cube root
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
LINEAR_BELOW, SLOPE = (6 / 29) ** 3, (29 / 3) ** 3


def invert(picture: Image.Image) -> Image.Image:
    """Return white lines on black of black lines on white."""
    return ImageOps.invert(picture)


def blur(picture: Image.Image, sigma: float) -> Image.Image:
    """Return the picture blurred by a Gaussian, which Pillow makes of boxes: as fast for a wide one."""
    return picture.filter(ImageFilter.GaussianBlur(sigma))


def tile(picture: Image.Image, rate: float) -> Image.Image:
    """Return the picture without its details: scaled down by a rate, and up again."""
    width, height = (max(int(side / rate), 1) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


def recolor_luminance(picture: Image.Image, gamma: float) -> Image.Image:
    """Return how light each pixel looks: the L of CIE's L*a*b*.

    sd-webui-controlnet takes red for blue here, which changes nothing in pictures that are grey already.
    """
    colours = np.asarray(picture) / 255.0
    light = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ LUMINANCE
    lightness = np.where(light > LINEAR_BELOW, 116.0 * np.cbrt(light) - 16.0, SLOPE * light)
    return _grey(lightness / 100.0, gamma)


def recolor_intensity(picture: Image.Image, gamma: float) -> Image.Image:
    """Return each pixel's strongest colour: the V of HSV."""
    return _grey(np.asarray(picture).max(axis=2) / 255.0, gamma)


def threshold(picture: Image.Image, threshold: float) -> Image.Image:
    """Return white where all colours are above a threshold, else black."""
    return Image.fromarray(np.where(np.asarray(picture).min(axis=2) > threshold, 255, 0).astype(np.uint8)).convert(
        "RGB"
    )


def inpaint(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the picture with black where it is painted anew, as ControlNet++ ProMax takes pictures to repaint."""
    kept = np.asarray(mask)[:, :, None] < 128
    return Image.fromarray(np.asarray(picture) * kept)


def _grey(values: np.ndarray, gamma: float) -> Image.Image:
    return Image.fromarray((values**gamma * 255.0).clip(0, 255).round().astype(np.uint8)).convert("RGB")
