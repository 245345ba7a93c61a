"""How far pictures of an approximation are from those of the exact run: PSNR, SSIM, and whether they show the same.

Pictures are float [N, H, W, 3] in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

RASTER = 16  # pixels a side that a thing is compared at
MIN_DIFFERENCE = 0.12  # from the background's colour, for a pixel to belong to a thing


@dataclass(frozen=True)
class Quality:
    """How near N pictures are to the exact ones: PSNR in dB, and structural similarity; both float64 [N]."""

    psnr: np.ndarray
    ssim: np.ndarray

    def summary(self) -> dict[str, float]:
        """The median and the least of each."""
        return {
            "psnr_median": float(np.median(self.psnr)),
            "psnr_least": float(self.psnr.min()),
            "ssim_median": float(np.median(self.ssim)),
            "ssim_least": float(self.ssim.min()),
        }


def compare(exact: np.ndarray, other: np.ndarray) -> Quality:
    """Return the quality of each picture, against the exact one at its place."""
    pairs = list(zip(exact.astype(np.float64), other.astype(np.float64), strict=True))
    return Quality(np.array([psnr(a, b) for a, b in pairs]), np.array([ssim(a, b) for a, b in pairs]))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; it is infinite for equal pictures."""
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(np.mean((a - b) ** 2)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the structural similarity of the luma (ITU-R BT.601).

    It is that of Wang et al. 2004 (doi:10.1109/TIP.2003.819861, section III).

    Local means and variances are weighted by a Gaussian of 1.5 pixels, 11 pixels wide; 1 for equal pictures.
    """
    x, y = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (a, b))

    def local(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (var_x + var_y + c2)))


def retrieval(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Tell whether each picture is nearer to the reference of its own prompt than to those of all others, bool [N].

    `references[i]` is an exact picture of the same prompt as `images[i]`, of another seed; there may be more of them,
    of other prompts. Near means by colour, outline and edges of the thing before an even background, wherever and
    however large it is, and by the background's colour.
    """
    similarity = _features(images) @ _features(references).T
    return similarity.argmax(1) == np.arange(len(images))


def _features(images: np.ndarray) -> np.ndarray:
    """Return the features of each picture as unit vectors [N, F]."""
    vectors = np.stack([_feature(image.astype(np.float64)) for image in images])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)  # 0 where all is even grey


def _feature(image: np.ndarray) -> np.ndarray:
    border = np.concatenate([part.reshape(-1, 3) for part in (image[:6], image[-6:], image[:, :6], image[:, -6:])])
    background = np.median(border, axis=0)
    difference = gaussian_filter(image - background, (1, 1, 0))
    mask = np.abs(difference).max(-1) > MIN_DIFFERENCE
    rows, columns = (np.flatnonzero(mask.sum(axis) > 2) for axis in (1, 0))
    if not len(rows) or not len(columns):
        rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)

    def raster(values: np.ndarray) -> np.ndarray:
        small = Image.fromarray(values.astype(np.float32)).resize((RASTER, RASTER), Image.Resampling.BOX, box)
        return np.asarray(small, np.float64)

    outline = raster(mask)
    colour = np.stack([raster(difference[..., channel] * mask) for channel in range(3)])
    edges = (np.diff(colour, axis=1), np.diff(colour, axis=2))
    # the background counts about as much as the thing, which has some RASTER**2 values of the same order
    parts = (colour, 0.7 * (outline - outline.mean()), *(2.0 * each for each in edges), RASTER * (background - 0.5))
    return np.concatenate([part.ravel() for part in parts])
