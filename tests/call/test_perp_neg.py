"""What a perpendicular negative prompt asks for, and where it cannot be."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxl import InputError, Region
from jaxl.backend import cheapest, lane_kinds
from jaxl.call.plan import Plan
from jaxl.diffusion.rows import COLUMNS
from jaxl.run.bucket import Branch, Bucket

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 10, "negative_prompt": "a dog"}


def scales(plan: Plan) -> np.ndarray:
    return plan.rows[:, : plan.count, COLUMNS.index("perp_neg")]


def test_where_it_is(small: Any) -> None:
    """In the rows of the interval alone, of the images that ask for it."""
    plan = small[0].plan("a cat", **SMALL, num_images=2, perp_neg_scale=[0.5, 0], guidance_interval=(0, 0.4))
    assert plan.bucket.order == (Branch.NEGATIVE, Branch.POSITIVE, Branch.EMPTY)
    assert [(each.rows, plan.bucket_of(each).branches) for each in plan.segments] == [(4, 3), (6, 1)]
    np.testing.assert_array_equal(scales(plan), np.array([[0.5] * 4 + [0] * 6, [0] * 10], np.float32))
    # with a scale of 1 it is all the guidance that there is
    assert small[0].plan("a cat", **SMALL, guidance_scale=1, perp_neg_scale=0.5).bucket == plan.bucket.single
    assert not small[0].plan("a cat", **SMALL, perp_neg_scale=0).bucket.perp_neg


@pytest.mark.parametrize("kind", ["zeros", "encoded"])
def test_what_an_empty_text_is(small: Any, kind: str) -> None:
    """What a negative prompt would be that is not given; that of a region is the image's."""
    region = Region("a llama", (0, 0, 0.5, 1), negative_prompt="a cow")
    plan = small[0].plan("a cat", **SMALL, perp_neg_scale=1, empty_negative=kind, regions=[region])
    (texts,), negative = plan.texts[0], small[0].plan("a", empty_negative=kind).texts[0][0][Branch.NEGATIVE]
    assert (texts[Branch.EMPTY] is None, negative is None) == (kind == "zeros",) * 2
    assert str(texts[Branch.EMPTY]) == str(negative) == str(plan.regions[0][0].texts[0][Branch.EMPTY])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perp_neg_scale": -1}, "perp_neg_scale=-1"),
        ({"perp_neg_scale": [1, 2]}, "perp_neg_scale=.*2 values for 1 images"),
        ({"apg_eta": 0.5}, "perp_neg_scale=1: an image has apg_eta too"),
        ({"cfg_zero": 1}, "perp_neg_scale=1: an image has cfg_zero too"),
        ({"mimic_scale": 3}, "perp_neg_scale=1: an image has mimic_scale too"),
        ({"scheduler": "euler_cfg++"}, "perp_neg_scale=1: the scheduler goes by an estimate without guidance"),
        ({"scheduler": "dpm++2m_cfg++"}, "perp_neg_scale=1: the scheduler goes by an estimate without guidance"),
    ],
)
def test_where_it_cannot_be(small: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small[0].plan("a cat", **SMALL, **{"perp_neg_scale": 1, **options})


def test_what_another_image_has(small: Any) -> None:
    """It is each image's own what it is guided by."""
    two = small[0].plan("a cat", **SMALL, num_images=2, perp_neg_scale=[1, 0], cfg_zero=[0, 1], pag_scale=2.0).bucket
    assert (two.shaped, two.perp_neg, two.branches) == (True, True, 4)


def test_a_network_that_is_told_its_scale(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small[0]
    monkeypatch.setattr(pipe, "model", replace(pipe.model, unet=replace(pipe.model.unet, time_cond_proj_dim=256)))
    with pytest.raises(InputError, match="perp_neg_scale=1: this model reads no negative prompt"):
        pipe.plan("a cat", **SMALL, perp_neg_scale=1)


def test_lanes() -> None:
    """A server draws it in lanes of its own, also of a model that is drawn without guidance."""
    one = Bucket(1, 64, 64, guided=True)
    own = replace(one, perp_neg=True)
    for usual in (one, one.plain):
        lanes = lane_kinds(usual, ("perp_neg",))
        assert lanes == [usual, own]
        assert [cheapest(asked, lanes, ()) for asked in (usual, own)] == lanes
    with pytest.raises(InputError, match="perp_neg_scale=True: the server has no program for it"):
        cheapest(own, lane_kinds(one, ("pag",)), ())
