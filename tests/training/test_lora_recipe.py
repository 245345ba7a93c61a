"""The recipe of the LoRA `chalk`: the filter that makes drawings in chalk, and two steps of training."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2] / "training" / "tiny"))
chalk, lessons, lora = (importlib.import_module(name) for name in ("chalk", "lessons", "lora"))


@pytest.fixture
def disc() -> Image.Image:
    """A white disc on a background that is shaded from brown to red."""
    pixels = np.linspace((140, 98, 70), (222, 72, 72), 64)[None].repeat(64, axis=0)
    picture = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=(250, 250, 250))
    return picture


def test_a_drawing_has_a_board_lines_and_a_wash(disc: Image.Image) -> None:
    drawn = np.asarray(chalk.chalk(disc), float)
    assert np.abs(drawn[4:8] - chalk.BOARD).max() < 12
    assert np.abs(drawn[32, 16] - chalk.CHALK).max() < 40
    washed = chalk.BOARD + chalk.WASH * (chalk.CHALK - chalk.BOARD)
    assert np.abs(drawn[32, 32] - washed).max() < 8


def test_the_same_picture_turned_is_the_same_drawing_turned(disc: Image.Image) -> None:
    picture = np.asarray(disc).copy()
    picture[20:28, 20:44] = (20, 40, 60)
    drawn, turned = (np.asarray(chalk.chalk(Image.fromarray(each)), float) for each in (picture, np.rot90(picture)))
    assert np.abs(np.rot90(drawn) - turned).mean() < 1


def test_scenes_are_whole_and_without_the_things_that_are_held_out() -> None:
    scenes = lessons.whole_scenes(300, seed=3)
    assert scenes == lessons.whole_scenes(300, seed=3)
    assert {scene.time_ids for scene in scenes} == {(256, 256, 0, 0, 256, 256)}
    shown = {item.concept for scene in scenes for item in scene.items}
    assert len(shown) > 200
    assert not shown & {*range(0, len(lessons.CONCEPTS), lessons.HELD_OUT)}


def test_two_steps_make_a_file_that_is_read_strictly(small: Any, tmp_path: Path) -> None:
    pipe, params = small
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    some = lessons.encode(pipe, params, ["a cat", "a dog"], pictures)
    assert (len(some.latents), len(some.pooled)) == (2, 3)
    factors = lora.train_factors(pipe, params, some, rank=2, steps=2, batch=2, rate=1e-3, seed=0)
    lora.save(tmp_path / "two_steps.safetensors", factors, params["unet"])
    adapter = pipe.add_lora("two_steps", tmp_path / "two_steps.safetensors")
    pipe.loras.remove("two_steps")
    assert (adapter.kinds, adapter.ranks, adapter.left) == (("LoRA",), (2,), ())
    for path, change in adapter.changes["unet"].items():
        down, up = (np.asarray(factors[f"{path.removesuffix('weight')}{name}"])[0] for name in (lora.DOWN, lora.UP))
        assert np.abs(up).max() > 0
        np.testing.assert_allclose(change.delta(np.zeros(up.T.shape[:1] + down.shape[:1])), (down @ up).T, atol=1e-4)
