"""What the article's program draws with a small model."""

from pathlib import Path

import numpy as np
from PIL import Image


def check_pictures(folder: Path, count: int) -> None:
    """So many pictures are in the folder: different ones, recognisably not empty."""
    files = sorted(folder.glob("*.png"))
    assert len(files) == count
    pictures = [np.asarray(Image.open(file), np.float32) for file in files]
    assert all(picture.shape == (64, 64, 3) and picture.std() > 20 for picture in pictures)
    assert all(np.abs(a - pictures[0]).mean() > 1 for a in pictures[1:])
