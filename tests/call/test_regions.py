"""Regions: how they are written, what they share, and what is refused before anything is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxl
from jaxl import Region
from jaxl.call.regions import read_regions, shares_of
from jaxl.run.bucket import Branch

LEFT, TOP = (0, 0, 0.5, 1), (0, 0, 64, 24)
BLACK = Image.new("L", (64, 64))


def test_a_text_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    BLACK.save("mask.png")
    plain = Region.parse("0,0,0.5,1: a cat: two of them")
    assert plain.facts == {"prompt": "a cat: two of them", "box": [0, 0, 0.5, 1], "strength": 1.0}
    full = Region.parse("0, 8, 32, 64@0.7: a cat, Negative prompt: a dog")
    assert full.facts == {"prompt": "a cat,", "negative_prompt": "a dog", "box": [0, 8, 32, 64], "strength": 0.7}
    assert Region.parse("mask.png@0.5:a cat").mask.size == (64, 64)
    for wrong in ("a cat", "0,0,1,1:", "0,0,left,1: a cat", "mask.png@much: a cat"):
        with pytest.raises(jaxl.InputError, match=r"region=.*such as 0,0,0\.5,1: a cat"):
            Region.parse(wrong)


def test_shares(small: Any) -> None:
    """Those that overlap share in proportion, strengths count, and a place at an edge is shared by its pixels."""
    made = read_regions([Region("a", LEFT), Region("b", TOP, strength=0.5)], "a1111", 1, 1)
    left, top = (each[0] for each in shares_of(made[0], small[0].model.unet, (64, 64), (8, 8)))
    np.testing.assert_allclose(left, [[2 / 3, 2 / 3, 0, 0], [5 / 6, 5 / 6, 0, 0], *[[1, 1, 0, 0]] * 2], atol=1e-6)
    np.testing.assert_allclose(top, [[1 / 3, 1 / 3, 0.5, 0.5], [1 / 6, 1 / 6, 0.25, 0.25], *[[0] * 4] * 2], atol=1e-6)


def test_texts(small: Any) -> None:
    """They change with the steps as others do; a negative prompt that a region lacks is its image's, zeros here."""
    pipe = small[0]
    regions = [Region("[a:b:2]", LEFT), Region("a BREAK b", LEFT, negative_prompt="c")]
    plan = pipe.plan("a", steps=4, empty_negative="zeros", regions=regions)
    assert [segment.version for segment in plan.segments] == [0, 1]
    assert (plan.bucket.regions, plan.bucket.chunks) == (2, 2)
    first, second = plan.regions[0]
    assert [each[Branch.NEGATIVE] for each in first.texts] == [None, None]
    ids = [each[Branch.POSITIVE][0]["text_encoder"][0][0, 1] for each in first.texts]
    assert ids == [pipe.tokenizers["text_encoder"].encode([text]).ids[0, 1] for text in "ab"]
    assert [len(second.texts[0][branch]) for branch in (Branch.POSITIVE, Branch.NEGATIVE)] == [2, 1]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ("a cat", "regions='a cat': give a list of `jaxl.Region`"),
        ([[Region("a", LEFT)]] * 3, "regions=.*3 lists for 1 images"),
        ([Region("a", LEFT)] * 17, "regions='17 for an image': give at most 16"),
        ([Region("<lora:chalk:1> a", LEFT)], "regions='<lora:chalk:1> a': LoRAs are for whole images"),
        ([Region("a (cat", LEFT)], r"regions='a \(cat': .*never closed"),
        ([Region("a", (0, 0, 65, 64))], "box=.*the picture is 64x64"),
        ([Region("a", (0.5, 0, 0.501, 1))], "box=.*it holds no pixel"),
        ([Region("a", mask=BLACK)], "mask='all black'"),
        ([Region("a", mask=Image.new("L", (64, 32), 255))], "mask='64x32 pixels': the image is 64x64"),
        ([Region("a", mask="nothing.png")], "mask='nothing.png': No such file"),
    ],
)
def test_what_cannot_work(small: Any, regions: Any, message: str) -> None:
    with pytest.raises(jaxl.InputError, match=message):
        small[0].plan("a", width=64, height=64, regions=regions)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": 7, "box": LEFT}, "prompt=7: of a region"),
        ({"prompt": "a"}, "box=None: of region 'a': give either a box or a mask"),
        ({"prompt": "a", "box": LEFT, "mask": BLACK}, "box=.*give either a box or a mask"),
        ({"prompt": "a", "box": (0.5, 0, 0.5, 1)}, "box=.*give left, top, right and bottom"),
        ({"prompt": "a", "box": (-1, 0, 1, 1)}, "box=.*from 0 on"),
        ({"prompt": "a", "box": (0, 0, 1)}, "box="),
        ({"prompt": "a", "box": ("x", 0, 1, float("nan"))}, "box="),
        ({"prompt": "a", "box": LEFT, "strength": 1.5}, "strength=1.5: of region 'a': give a number from 0 to 1"),
        ({"prompt": "a", "box": LEFT, "negative_prompt": 3}, "negative_prompt=3"),
    ],
)
def test_what_is_no_region(given: dict[str, Any], message: str) -> None:
    with pytest.raises(jaxl.InputError, match=message):
        Region(**given)
