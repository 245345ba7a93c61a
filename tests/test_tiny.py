"""The embedded model's own LoRA and ControlNet: they are there without being added, and draw as they say."""

from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from jaxl import Control

TREE = ((127, 54), (165, 110), (152, 112), (184, 160), (154, 162), (154, 190), (104, 190), (104, 162), (72, 160))
TREE += ((102, 112), (89, 110))
ALONG = "a christmas tree on a purple background, noto style"
CAT = "a cat on a pink background, flat style"
BACKGROUND = np.s_[:24]  # of a picture of one thing
FAR = 90  # from the colour of the background, summed over channels, of 255 each


def test_the_lora_is_read_strictly(tiny: Any) -> None:
    pipe, _ = tiny
    assert "chalk" in pipe.loras
    adapter = pipe.loras["chalk"]
    assert (adapter.kinds, adapter.left, adapter.trigger_words) == (("LoRA",), (), ())
    assert adapter.base_model == "stable-diffusion-xl-v1-base/lora"
    assert list(adapter.changes) == ["unet"]
    assert adapter.metadata["ss_network_dim"] == str(adapter.ranks[0])


def test_things_are_where_their_lines_are_and_boards_are_cool(tiny: Any) -> None:
    """Two pictures along lines at different places, and two without lines, of which the LoRA draws one."""
    pipe, params = tiny
    lines = Image.new("RGB", (256, 256))
    ImageDraw.Draw(lines).polygon(TREE, outline="white")
    along = [[Control("edges", ImageChops.offset(lines, shift, 0))] for shift in (-28, 28)]
    own: dict[str, Any] = {"controls": [*along, [], []], "loras": [{}, {}, {}, {"chalk": 1.0}], "seed": [0] * 4}
    try:
        made = pipe.generate(params, [ALONG] * 2 + [CAT] * 2, **own, steps=5, scheduler="dpm++2m_karras").images
    finally:
        pipe.remove_control("edges")
    left, right, plain, chalk = (np.asarray(image, float) for image in made)
    assert middle(right) - middle(left) > 25
    assert warmth(plain) > 0.1
    assert warmth(chalk) < 0.0


def middle(pixels: np.ndarray) -> float:
    """Where the thing is drawn, from left to right."""
    columns = (abs(pixels - np.median(pixels, (0, 1))).sum(-1) > FAR).sum(0)
    return float(np.average(np.arange(len(columns)), weights=columns))


def warmth(pixels: np.ndarray) -> float:
    """By how much the background is redder than green and blue."""
    red, green, blue = pixels[BACKGROUND].mean((0, 1)) / 255
    return float(red - (green + blue) / 2)
