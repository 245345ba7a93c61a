"""The recipe of the ControlNet `edges`: the edges, and two steps of training."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxl.weights.layout import flatten
from jaxl.weights.winograd import without_winograd

pytest.importorskip("cv2")
sys.path.insert(0, str(Path(__file__).parents[2] / "training" / "tiny"))
controlnet, edges, lessons = (importlib.import_module(name) for name in ("controlnet", "edges", "lessons"))


def square(left: int, side: int = 32) -> Image.Image:
    picture = Image.new("RGB", (64, 64), "teal")
    ImageDraw.Draw(picture).rectangle((left, 16, left + side, 16 + side), fill="white")
    return picture


def test_edges_and_what_follows_them() -> None:
    lines = edges.edges(square(16))
    assert set(np.unique(lines)) == {0, 255}
    assert not lines[20:44, 20:44].any()
    assert lines[32, 14:18].any()
    assert edges.followed(lines, square(16)) == (1.0, 1.0)
    assert edges.followed(lines, square(17)) == (1.0, 1.0)
    found, own = edges.followed(lines, square(24))
    assert 0.3 < found < 0.9
    assert 0.3 < own < 0.9
    assert edges.followed(lines, Image.new("RGB", (64, 64))) == (0.0, 1.0)


def test_two_steps_make_a_network_that_is_read(small: Any, tmp_path: Path) -> None:
    pipe, params = small
    config = controlnet.small_config(pipe.checkpoint.configs["unet"])
    pictures = [square(16), square(8)]
    some = lessons.encode(pipe, params, ["a cat", "a dog"], pictures)
    options: dict[str, Any] = {"steps": 2, "batch": 2, "rate": 1e-2, "seed": 0}
    network = controlnet.train_network(
        pipe, params, some, pictures, config, **options, seen=partial(controlnet.save, tmp_path, config)
    )
    added = pipe.add_control("two_steps", tmp_path)
    pipe.remove_control("two_steps")
    assert added.config.unet.mid == ()
    read, own = flatten(without_winograd(added.params)), flatten(network)
    assert sorted(read) == sorted(own)
    for name, leaf in own.items():
        np.testing.assert_allclose(read[name], leaf, atol=1e-3 * np.abs(leaf).max(), err_msg=name)
    assert np.abs(own["controlnet_mid_block.weight"]).max() > 0
