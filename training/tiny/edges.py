"""The edges of a picture as white lines on black, and how well another picture follows them. Needs OpenCV."""

from __future__ import annotations

import cv2
import jaxl
import numpy as np
from PIL import Image

LOW, HIGH = 100, 200  # of Canny's thresholds; those of most ControlNets that follow edges
NEAR = 2  # pixels between a line and the edge that follows it


def edges(picture: Image.Image) -> np.ndarray:
    """Return the picture's edges, uint8 [H, W], 0 or 255 (Canny 1986)."""
    return np.asarray(jaxl.preprocess("canny", picture, low=LOW, high=HIGH))[:, :, 0]


def followed(lines: np.ndarray, picture: Image.Image) -> tuple[float, float]:
    """Return which share of the lines [H, W] has an edge of the picture near, and which share of its edges a line."""
    return _near(lines, drawn := edges(picture)), _near(drawn, lines)


def _near(some: np.ndarray, others: np.ndarray) -> float:
    """Return which share of some lines has others near; 1 where there are none."""
    around = cv2.dilate(others, np.ones((2 * NEAR + 1, 2 * NEAR + 1), np.uint8))
    return float((around[some > 0] > 0).mean()) if some.any() else 1.0
