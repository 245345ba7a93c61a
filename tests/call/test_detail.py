"""Parts of a picture drawn anew: where, with what around them, and what is refused before anything is drawn."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxl

RNG = np.random.default_rng(3)
PICTURE = Image.fromarray(RNG.integers(0, 256, (96, 128, 3), np.uint8))
BOX = (16, 16, 40, 40)
WHITE = np.zeros((96, 128), np.uint8)
WHITE[60:90, 80:120] = 255


def test_parts_are_inpainted_enlarged_and_laid_back(small: Any) -> None:
    """A box and a mask in one batch: each is what `generate` paints there, and the rest stays as it is."""
    pipe, params = small
    how: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "padding_mask_crop": 8}
    made = pipe.detail(params, PICTURE, [BOX, WHITE], ["a cat", "a dog"], feather=0, seed=5, strength=0.7, **how)
    assert made.size == PICTURE.size
    masks = [np.zeros_like(WHITE), WHITE]
    masks[0][16:40, 16:40] = 255
    wanted = pipe.generate(params, ["a cat", "a dog"], image=PICTURE, mask=masks, seed=5, strength=0.7, **how).images
    by_part = np.where(masks[0][..., None] > 0, wanted[0], wanted[1])
    np.testing.assert_array_equal(np.asarray(made), by_part)
    untouched = (masks[0] == 0) & (masks[1] == 0)
    np.testing.assert_array_equal(np.asarray(made)[untouched], np.asarray(PICTURE)[untouched])
    assert (np.asarray(made) != np.asarray(PICTURE)).any(-1)[~untouched].mean() > 0.9


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([], {}, "parts='0': give 1 to 64 boxes or masks"),
        ([BOX] * 65, {}, "parts='65'"),
        ([(100, 0, 129, 9)], {}, "box=.*of a part: the picture is 128x96"),
        ((0, 0, 0.5, 1.5), {}, "box=.*it holds no pixel"),
        ([(0, 0, -1, 1)], {}, "box=.*give left, top, right and bottom"),
        ([WHITE[:50]], {}, "parts=.*the mask is 128x50 pixels, the picture 128x96"),
        ([WHITE * 0], {}, "parts=.*nothing to repaint"),
        (BOX, {"feather": -1}, "feather=-1: of parts: give a number from 0 to 256"),
        (BOX, {"image": PICTURE}, "image=.*each part has its own"),
        (BOX, {"prompt": ["a", "b"]}, "prompt='2 prompts': give one, or one for each of 1 parts"),
        (BOX, {"strength": 2}, "strength=2"),
        (BOX, {"padding_mask_crop": -1}, "padding_mask_crop=-1"),
    ],
)
def test_what_cannot_work(small: Any, parts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(jaxl.InputError, match=message):
        small[0].detail(small[1], PICTURE, parts, **{"prompt": "a cat", **options})
