"""The embedded model's own ControlNet: it is there without being added, and pictures follow its lines."""

from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from jaxl import Control

TREE = ((127, 54), (165, 110), (152, 112), (184, 160), (154, 162), (154, 190), (104, 190), (104, 162), (72, 160))
TREE += ((102, 112), (89, 110))
PROMPT = "a christmas tree on a purple background, noto style"
FAR = 90  # from the colour of the background, summed over channels, of 255 each


def test_a_picture_is_where_its_lines_are(tiny: Any) -> None:
    pipe, params = tiny
    lines = Image.new("RGB", (256, 256))
    ImageDraw.Draw(lines).polygon(TREE, outline="white")

    def middle(shift: int) -> float:
        """Where the thing is drawn, from left to right, along lines that are moved so far."""
        asked = [Control("edges", ImageChops.offset(lines, shift, 0))]
        drawn = pipe.generate(params, PROMPT, controls=asked, steps=4, scheduler="dpm++2m_karras").images[0]
        pixels = np.asarray(drawn, float)
        columns = (abs(pixels - np.median(pixels, (0, 1))).sum(-1) > FAR).sum(0)
        return float(np.average(np.arange(len(columns)), weights=columns))

    try:
        assert middle(28) - middle(-28) > 25
    finally:
        pipe.remove_control("edges")
