"""What is under a mask, and what a mask leaves as it is."""

import numpy as np
import pytest
from PIL import Image

from jaxl.server.edits import Source, filled, transparent


def test_filled_with_the_colours_around() -> None:
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste("blue", (32, 0, 64, 64))
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (16, 16, 48, 48))
    picture.paste("white", (16, 16, 48, 48))
    full = np.asarray(filled(picture, mask)).astype(int)
    assert full[..., 1].max() < 30  # no white is left
    assert full[32, 17, 0] > 150 > full[32, 17, 2]
    assert full[32, 46, 2] > 150 > full[32, 46, 0]
    assert filled(picture, Image.new("L", picture.size, 255)) is picture


def test_cropped_to_the_aspect() -> None:
    picture = Image.new("RGB", (64, 32), "blue")
    picture.paste("red", (16, 0, 48, 32))
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (16, 0, 48, 32))
    cut = Source(picture, mask).cropped(32, 32)
    assert cut.picture.getcolors() == [(32 * 32, (255, 0, 0))]
    assert cut.mask is not None
    assert cut.mask.getcolors() == [(32 * 32, 255)]
    assert Source(picture).cropped(32, 32).mask is None


def test_what_a_mask_leaves_is_laid_over() -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    drawn = Image.new("RGB", (32, 32), "blue")
    shown = Source(Image.new("RGB", (64, 64), "red"), mask).overlaid(drawn)
    assert (shown.size, shown.getpixel((4, 16)), shown.getpixel((28, 16))) == ((32, 32), (0, 0, 255), (255, 0, 0))
    assert Source(Image.new("RGB", (64, 64), "red")).overlaid(drawn) is drawn


@pytest.mark.parametrize(("alpha", "white"), [(0, 255), (100, 155), (255, None)])
def test_transparent_where_painted_anew(alpha: int, white: int | None) -> None:
    mask = transparent(Image.new("RGBA", (4, 4), (9, 9, 9, alpha)))
    assert (mask and mask.getextrema()) == (white and (white, white))
    assert transparent(Image.new("RGB", (4, 4))) is None
