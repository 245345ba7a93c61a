"""What each preprocessor makes, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import jaxl
from jaxl.errors import InputError
from jaxl.preprocessors.registry import PREPROCESSORS, WITHOUT_WEIGHTS

RANDOM = np.random.default_rng(0)
COARSE = Image.fromarray(RANDOM.integers(0, 256, (12, 16, 3), dtype=np.uint8))
WAVES = COARSE.resize((640, 512), Image.Resampling.BICUBIC)
NOISE = Image.fromarray(RANDOM.integers(0, 256, (96, 64, 3), dtype=np.uint8))

# of what controlnet_aux 0.0.10 made of the waves
EDGES = 11312
SHUFFLED = [200, 188, 188, 128, 144, 109, 68, 54, 102]
LINES = (1.3583404541015625, 70)


def made(name: str, picture: Image.Image = NOISE, **how: Any) -> np.ndarray:
    """Grey in all channels is one channel."""
    pixels = np.asarray(jaxl.preprocess(name, picture, **how)).astype(int)
    return pixels[:, :, 0] if (pixels == pixels[:, :, :1]).all() else pixels


def test_as_controlnet_aux() -> None:
    """What its version 0.0.10 makes of this picture, at its size: equal to the pixel where both were installed."""
    edges = made("canny", WAVES, low=20, high=60)
    assert (set(np.unique(edges)), int((edges == 255).sum())) == ({0, 255}, EDGES)
    shuffled = made("shuffle", WAVES, seed=3)
    np.testing.assert_allclose(shuffled[::200, ::250].reshape(-1, 3)[:, 0], SHUFFLED, atol=1)
    lines = made("lineart_standard", WAVES)
    np.testing.assert_allclose([lines.mean(), lines.max()], LINES, rtol=1e-3)


def test_strokes_are_those_of_sd_webui_controlnet() -> None:
    values = np.asarray(NOISE).astype(np.float32)
    narrow, wide = cv2.GaussianBlur(values, (0, 0), 0.5), cv2.GaussianBlur(values, (0, 0), 5.0)
    light = (255 - (wide - narrow).min(axis=2)).clip(0, 255).astype(np.uint8).astype(int)
    np.testing.assert_array_equal(made("scribble_xdog", threshold=40), np.where(2 * (255 - light) > 40, 255, 0))


def test_colours() -> None:
    pixels = np.asarray(NOISE)
    assert np.abs(made("recolor_luminance") - cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[:, :, 0]).max() <= 1
    np.testing.assert_array_equal(made("recolor_intensity"), pixels.max(axis=2))
    darker = made("recolor_intensity", gamma=2.0) / 255
    np.testing.assert_allclose(darker, (pixels.max(axis=2) / 255) ** 2, atol=0.003)
    np.testing.assert_array_equal(made("invert"), 255 - pixels)
    np.testing.assert_array_equal(made("threshold", threshold=60), np.where(pixels.min(axis=2) > 60, 255, 0))


def test_what_is_left_without_details() -> None:
    pixels = np.asarray(WAVES.resize((128, 96)))
    picture = Image.fromarray(pixels)
    blurred = cv2.GaussianBlur(pixels, (0, 0), 4.0).astype(int)
    assert np.abs(made("blur", picture, sigma=4.0) - blurred)[16:-16, 16:-16].max() < 6
    small = cv2.resize(pixels, (32, 24), interpolation=cv2.INTER_AREA)
    rough = cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC).astype(int)
    assert np.abs(made("tile", picture, rate=4.0) - rough).mean() < 4
    np.testing.assert_array_equal(made("tile", picture), pixels)


def test_what_is_painted_anew_is_black() -> None:
    mask = np.zeros((96, 64), bool)
    mask[:48] = True
    hidden = made("inpaint", mask=mask)
    np.testing.assert_array_equal(hidden[:48], 0)
    np.testing.assert_array_equal(hidden[48:], np.asarray(NOISE)[48:])


def test_a_plain_picture_has_no_lines() -> None:
    plain = Image.new("RGB", (64, 64), (90, 120, 150))
    for name in ("canny", "lineart_standard", "scribble_xdog"):
        assert made(name, plain).max() == 0
    np.testing.assert_array_equal(made("shuffle", plain), np.asarray(plain))


@pytest.mark.parametrize("each", WITHOUT_WEIGHTS, ids=lambda each: each.name)
def test_resolution(each: Any) -> None:
    """It is that of the shorter side; without it the size stays, however small."""
    for size, resolution, wanted in (((64, 96), 128, (128, 192)), ((1, 1), None, (1, 1)), ((3, 2), None, (3, 2))):
        mask = np.ones(size[::-1], bool) if each.masked else None
        picture = jaxl.preprocess(each.name, Image.new("RGB", size, "red"), resolution=resolution, mask=mask)
        assert (picture.size, picture.mode) == (wanted, "RGB")


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("cany", {}, "name='cany': no such preprocessor; did you mean 'canny'?"),
        ("canny", {"low": 256}, "low=256: give a whole number from 0 to 255"),
        ("canny", {"low": 1.5}, "low=1.5: give a whole number"),
        ("canny", {"low": True}, "low=True: "),
        ("blur", {"sigma": float("nan")}, "sigma=nan: give a number from 0.01 to 64"),
        ("blur", {"gamma": 1}, "gamma=1: no parameter of blur; "),
        ("invert", {"gamma": 1}, "gamma=1: no parameter of invert; it has no parameters"),
        ("canny", {"resolution": 63}, "resolution=63: give a whole number from 64 to 2048"),
        ("canny", {"mask": np.ones((96, 64), bool)}, "mask='a picture': canny takes none"),
        ("inpaint", {}, "mask=None: inpaint takes one"),
        ("canny", {"weights": "."}, "weights='.': canny has no weights"),
    ],
)
def test_what_is_refused(name: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + message.replace("?", r"\?").replace("[", r"\[")):
        jaxl.preprocess(name, NOISE, **how)


def test_sides_that_opencv_cannot_move() -> None:
    with pytest.raises(InputError, match="image='1x40000 pixels': shuffle takes sides of at most 32766 pixels"):
        jaxl.preprocess("shuffle", Image.new("RGB", (1, 40000)))
    for name in ("canny", "lineart_standard", "scribble_xdog", "blur"):
        assert jaxl.preprocess(name, Image.new("RGB", (1, 40000))).size == (1, 40000)


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"name='canny': it needs OpenCV; .*pip install .*\[control\]"):
        jaxl.preprocess("canny", NOISE)
    with pytest.raises(InputError, match="name='hed': it needs controlnet_aux; install it"):
        jaxl.preprocess("hed", NOISE, weights=tmp_path)
    assert made("invert").shape == (96, 64, 3)


def test_weights_of_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"weights=None: lineart has weights; give the folder with sk_model\.pth, "):
        jaxl.preprocess("lineart", NOISE)
    (tmp_path / "sk_model.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"no file sk_model2\.pth in it"):
        jaxl.preprocess("lineart", NOISE, weights=tmp_path)


def test_names() -> None:
    modules = [name for each in PREPROCESSORS.values() for name in each.modules]
    assert len(modules) == len({*modules})
    for each in WITHOUT_WEIGHTS:
        assert each.modules
        assert len(each.sliders) <= 2
        assert each.read({}) == {one.name: one.default for one in each.parameters}
