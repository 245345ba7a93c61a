"""Preprocessors that find lines, or move pixels, with OpenCV: as controlnet_aux does, to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from jaxl.errors import InputError

# pixels from one random number to the next
GRAIN = 256
# of a picture whose pixels OpenCV moves
LONGEST_SIDE = 32766


def canny(picture: Image.Image, low: int, high: int) -> Image.Image:
    """Return edges, white on black (Canny 1986)."""
    return _picture(_cv2().Canny(np.asarray(picture), low, high))


def lineart_standard(picture: Image.Image, sigma: float, threshold: float) -> Image.Image:
    """Return lines that are darker than their surroundings, white on black; those above `threshold` are counted."""
    values = np.asarray(picture).astype(np.float32)
    darker = (_cv2().GaussianBlur(values, (0, 0), sigma) - values).min(axis=2).clip(0, 255)
    counted = darker[darker > threshold]
    darker /= max(16, np.median(counted)) if counted.size else 16
    return _picture((darker * 127).clip(0, 255).astype(np.uint8))


def scribble_xdog(picture: Image.Image, threshold: float) -> Image.Image:
    """Return rough strokes, white on black: a difference of Gaussians, as sd-webui-controlnet takes it."""
    values = np.asarray(picture).astype(np.float32)
    narrow, wide = (_cv2().GaussianBlur(values, (0, 0), sigma) for sigma in (0.5, 5.0))
    light = (255 - (wide - narrow).min(axis=2)).clip(0, 255).astype(np.uint8)
    return _picture(np.where(2 * (255 - light.astype(int)) > threshold, 255, 0).astype(np.uint8))


def shuffle(picture: Image.Image, seed: int) -> Image.Image:
    """Return the picture's colours in waves of random shapes. Raises InputError for a long picture."""
    if max(picture.size) > LONGEST_SIDE:
        remedy = f"shuffle takes sides of at most {LONGEST_SIDE} pixels; scale it down"
        raise InputError("image", f"{picture.width}x{picture.height} pixels", remedy)
    random = np.random.RandomState(seed)
    x, y = (_waves(random, picture.size) * (side - 1) for side in picture.size)
    flow = np.stack([x, y], axis=2).astype(np.float32)
    return Image.fromarray(_cv2().remap(np.asarray(picture), flow, None, _cv2().INTER_LINEAR))


def _waves(random: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return smooth noise in 0..1, [height, width]."""
    width, height = size
    coarse = random.uniform(0, 1, (height // GRAIN + 2, width // GRAIN + 2, 1))
    smooth = _cv2().resize(coarse, (width + 2 * GRAIN, height + 2 * GRAIN), interpolation=_cv2().INTER_CUBIC)
    noise = smooth[GRAIN : GRAIN + height, GRAIN : GRAIN + width]
    noise -= noise.min()
    return noise / (noise.max() or 1.0)


def _picture(lines: np.ndarray) -> Image.Image:
    return Image.fromarray(lines).convert("RGB")


def _cv2() -> Any:
    """Return OpenCV, which is imported when it is needed: it is in an extra."""
    import cv2

    return cv2
