"""An upscaler as a value: pictures of any size by one program, tiles that leave no seams, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from upscaler_files import golden, saved, weights_of

import jaxl
from jaxl.bench.measure import compilations
from jaxl.errors import InputError, NonFiniteError
from jaxl.run.sharding import make_mesh

WEIGHTS = weights_of(golden("compact_4x")[0])
# smooth, as pictures are: what a network of no use makes of noise is noise
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((96, 96))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # what it adds is small beside the picture, so that hardly anything is beyond 0..1
    quiet = {key: array * (0.05 if key.startswith("body.8.") else 1) for key, array in WEIGHTS.items()}
    return saved(tmp_path_factory.mktemp("upscaler") / "x4.pth", quiet)


@pytest.fixture(scope="module")
def whole(file: Path) -> np.ndarray:
    """The picture, enlarged in one piece."""
    upscaler = jaxl.Upscaler.from_file(file, tile=96, mesh=make_mesh(jax.devices()[:1]))
    return upscaler(np.asarray(PICTURE)[None])


@pytest.fixture(scope="module")
def upscaler(file: Path) -> jaxl.Upscaler:
    """On all eight devices."""
    upscaler = jaxl.Upscaler.from_file(file, tile=48)
    upscaler.warm_up()
    return upscaler


def test_what_it_is(upscaler: jaxl.Upscaler) -> None:
    assert (upscaler.name, upscaler.scale, upscaler.tile, upscaler.overlap) == ("x4", 4, 48, 12)


def test_tiles_are_the_whole(upscaler: jaxl.Upscaler, whole: np.ndarray) -> None:
    """The network sees five pixels far: little differs where tiles fade into others, and nothing elsewhere."""
    told: list[Any] = []
    made = upscaler(np.asarray(PICTURE)[None], lambda *done: told.append(done))
    assert told[-1] == (9, 9)
    assert made.dtype == np.float32
    assert made.shape == whole.shape == (1, 384, 384, 3)
    difference = np.abs(made - whole)
    assert np.sqrt(np.mean(np.square(difference))) < 1e-4
    assert difference[:, : 4 * 24, : 4 * 24].max() < 1e-6  # of the first tile alone


def test_pictures_of_all_sizes_by_one_program(upscaler: jaxl.Upscaler) -> None:
    random = np.random.default_rng(0)
    with compilations() as compiled:
        for batch, height, width in ((1, 1, 1), (2, 7, 130), (1, 48, 48), (3, 49, 20)):
            pictures = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
            made = upscaler(pictures)
            assert made.shape == (batch, 4 * height, 4 * width, 3)
            assert made.min() >= 0
            assert made.max() <= 1
            np.testing.assert_array_equal(made[:1], upscaler(pictures[:1]))
            floats = upscaler(pictures.astype(np.float32) / 255)
            np.testing.assert_allclose(floats, made, atol=1e-6)
    assert compiled == []


@pytest.mark.parametrize("scale", [None, 4, 2, 1.3, 0.5, 9])
def test_any_factor(upscaler: jaxl.Upscaler, scale: float | None) -> None:
    made = jaxl.upscale(PICTURE, upscaler, scale)
    factor = 4 if scale is None else scale
    assert made.size == (round(96 * factor), round(96 * factor))
    plain = PICTURE.resize(made.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(made).astype(float) - np.asarray(plain)).mean() < 12  # the same picture


@pytest.mark.parametrize(
    ("name", "how"), [("lanczos", Image.Resampling.LANCZOS), ("nearest", Image.Resampling.NEAREST)]
)
def test_without_a_network(name: str, how: Image.Resampling) -> None:
    assert jaxl.upscale(PICTURE, name, 1.5) == PICTURE.resize((144, 144), how)


def test_what_is_refused(upscaler: jaxl.Upscaler, file: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (lambda: upscaler(np.zeros((4, 4, 3), np.uint8)), r"pictures=\(4, 4, 3\): give an array \[B, H, W, 3\]"),
        (lambda: upscaler(np.zeros((1, 0, 4, 3), np.uint8)), "pictures="),
        (lambda: jaxl.upscale(PICTURE, upscaler, 17), "scale=17: give a number above 0, up to 16"),
        (lambda: jaxl.upscale(PICTURE, upscaler, float("nan")), "scale=nan"),
        (lambda: jaxl.upscale(PICTURE, "lanczos"), "scale=None"),
        (lambda: jaxl.upscale(PICTURE, "nearst", 2), "did you mean 'nearest'"),
        (lambda: jaxl.upscale(np.zeros((2000, 3000), np.uint8), upscaler, 1), "scale='12000x8000': at most 67108864"),
        (lambda: jaxl.Upscaler.from_file(file, tile=8), "tile=8: give a multiple of 1 pixels, from 16 to 4096"),
        (lambda: jaxl.Upscaler.from_file(file, dtype="float64"), "dtype='float64'"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
    broken = saved(tmp_path / "a.pth", WEIGHTS | {"body.0.bias": np.full(8, np.nan, np.float32)})
    with pytest.raises(NonFiniteError, match="a gave NaN or infinity"):
        jaxl.Upscaler.from_file(broken, tile=16)(np.zeros((1, 4, 4, 3), np.uint8))
