"""A picture as a drawing in chalk: white outlines and a pale wash on a green board. Needs numpy and Pillow only."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

BOARD = np.array((72.0, 124.0, 222.0))  # of darker blues the autoencoder of `tiny` makes teal
CHALK = np.array((244.0, 248.0, 244.0))
WASH = 0.22  # the share of chalk that a white thing has
FAINT, CLEAR = 6.0, 12.0  # changes per pixel, of 255: edges between them are drawn in grey
NEAR, FAR = 40.0, 90.0  # distances from the background's colour: what lies between them has half a wash
FRAME = 8  # pixels along the picture's edges that show the background
FORTY_FIVE = np.tan(np.pi / 8)  # edges steeper and flatter than this are diagonal


def chalk(picture: Image.Image) -> Image.Image:
    """Return the picture's outlines, all of one width, over a wash that is paler where the thing is lighter."""
    soft = np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(1.8)), np.float64)
    thing = ramp(np.linalg.norm(soft - background(soft), axis=-1), NEAR, FAR) * (0.25 + 0.75 * soft.mean(-1) / 255)
    washed = blend(BOARD, CHALK, WASH * thing)
    return Image.fromarray(blend(washed, CHALK, outlines(soft)).round().astype(np.uint8))


def outlines(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> how much chalk each pixel has, 0..1: lines where a colour changes most (Canny 1986, section IV)."""
    dy, dx = np.gradient(pixels, axis=(0, 1))
    most = np.hypot(dx, dy).argmax(-1, keepdims=True)  # the colour that changes most
    dy, dx = (np.take_along_axis(change, most, -1)[..., 0] for change in (dy, dx))
    size = np.hypot(dx, dy)
    upright, level = abs(dy) < FORTY_FIVE * abs(dx), abs(dx) < FORTY_FIVE * abs(dy)
    falling = ~upright & ~level & (dx * dy > 0)
    crest = np.zeros(size.shape, bool)
    directions = ((upright, (0, 1)), (level, (1, 0)), (falling, (1, 1)), (~upright & ~level & ~falling, (1, -1)))
    for here, (y, x) in directions:
        crest |= here & (size >= np.roll(size, (y, x), (0, 1))) & (size >= np.roll(size, (-y, -x), (0, 1)))
    inside = np.zeros_like(crest)
    inside[2:-2, 2:-2] = True
    lines = Image.fromarray((255 * ramp(size, FAINT, CLEAR) * (crest & inside)).astype(np.uint8))
    drawn = np.asarray(lines.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.GaussianBlur(1.0)), np.float64)
    return np.minimum(drawn * 1.1 / 255, 1.0)


def background(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> the colours of its edges, as a plane over the whole picture: backgrounds may be shaded."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    plane = np.stack([np.ones((height, width)), y / height, x / width], axis=-1)
    edges = (np.minimum(y, height - 1 - y) < FRAME) | (np.minimum(x, width - 1 - x) < FRAME)
    return plane @ np.linalg.lstsq(plane[edges], pixels[edges], rcond=None)[0]


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 up to `low`, 1 from `high` on, and a straight line between them."""
    return ((values - low) / (high - low)).clip(0.0, 1.0)


def blend(under: np.ndarray, over: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return colours with a share [H, W] of others over them."""
    return under + (over - under) * share[..., None]
