"""Sheets of pictures with labels: each picture is in its place, and labels take no part of it."""

import numpy as np
import pytest
from PIL import Image

import jaxl
from jaxl.call.sheet import GAP, sheet

COLOURS = ("red", "lime", "blue", "cyan", "magenta", "yellow", "pink", "orange")


def test_pictures_are_in_their_places() -> None:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    plain = sheet(pictures[:4], ["", ""], ["", ""])
    assert plain.size == (2 * (40 + GAP), 2 * (30 + GAP))
    assert [plain.getpixel((x, y)) for y in (0, 30 + GAP) for x in (0, 40 + GAP)] == [
        picture.getpixel((0, 0)) for picture in pictures[:4]
    ]
    made = sheet(pictures, ["a", "a long label of two lines"], ["rows", "are here"], ["first", "second"])
    pixels = np.asarray(made).reshape(-1, 3).tolist()
    found = [pixels.count(list(picture.getpixel((0, 0)))) for picture in pictures]  # pyright: ignore[reportArgumentType]
    assert found == [40 * 30] * 8
    # labels are written in grey shades between white and black
    assert 0 < pixels.count([0, 0, 0]) < made.width * made.height / 10


def test_too_large() -> None:
    with pytest.raises(jaxl.InputError, match=r"size='\d+ pixels': a sheet has at most"):
        sheet([Image.new("RGB", (4096, 4096))] * 9, ["1", "2", "3"], ["1", "2", "3"])
