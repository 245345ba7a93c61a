"""SDXL's sizes, and how a number of images is split into dispatches."""

import itertools

import numpy as np
import pytest

from jaxl.call.sizes import (
    BUCKETS,
    aspect_bucket,
    buckets_for,
    nearest_bucket,
    nearest_size,
    read_size,
    rounds,
    smallest_that_fits,
)
from jaxl.errors import InputError


def test_the_paper_s_table() -> None:
    assert len(BUCKETS) == len(set(BUCKETS)) == 40
    for width, height in BUCKETS:
        assert width % 64 == height % 64 == 0
        assert 0.9 * 2**20 < width * height <= 2**20
    mirrored = {(height, width) for width, height in BUCKETS}
    assert set(BUCKETS) - mirrored == {(1344, 704)}


def test_the_paper_s_aspects() -> None:
    """The third column of the table, height by width."""
    expected = (
        "0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6 0.68 0.72 0.78 0.82 0.88 0.94 1.0 "
        "1.07 1.13 1.21 1.29 1.38 1.46 1.67 1.75 2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0"
    )
    assert [round(height / width, 2) for width, height in BUCKETS] == [float(aspect) for aspect in expected.split()]


@pytest.mark.parametrize(("side", "unit"), [(1024, 64), (512, 32), (256, 16)])
def test_native_sides_that_need_no_rounding(side: int, unit: int) -> None:
    assert buckets_for(side) == tuple((width * unit // 64, height * unit // 64) for width, height in BUCKETS)


@pytest.mark.parametrize("side", [64, 96, 200, 720, 1000])
@pytest.mark.parametrize("factor", [8, 16])
def test_rounding(side: int, factor: int) -> None:
    sizes = buckets_for(side, factor)
    assert len(set(sizes)) == len(sizes) <= 40
    assert all(width % factor == height % factor == 0 for width, height in sizes)
    for width, height in BUCKETS:
        exact = np.array((width, height)) * side / 1024
        assert min(np.abs(np.array(size) - exact).max() for size in sizes) <= factor / 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024x768", (1024, 768)),
        ("64X32", (64, 32)),
        ("0x8", (0, 8)),
        ("", None),
        ("large", None),
        ("1024", None),
        ("x8", None),
        ("8x8x8", None),
        ("8 x 8", None),
        ("-8x8", None),
        ("1234567x8", None),
        ("16:9", None),
    ],
)
def test_texts_of_sizes(text: str, size: tuple[int, int] | None) -> None:
    assert read_size(text) == size


def test_of_equal_shapes_the_nearest_area() -> None:
    sizes = [(256, 256), (1024, 1024), (512, 512), (512, 256)]
    assert nearest_size((500, 500), sizes) == (512, 512)
    assert nearest_size((2000, 1999), sizes) == (1024, 1024)
    assert nearest_size((900, 300), sizes) == (512, 256)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1920, 1080), (1344, 768)),
        ((1080, 1920), (768, 1344)),
        ((3, 2), (1216, 832)),
        ((4000, 3000), (1152, 896)),
        ((17, 17), (1024, 1024)),
        ((9000, 100), (2048, 512)),
        ((1, 50), (512, 2048)),
    ],
)
def test_nearest_bucket(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert nearest_bucket(*size) == expected
    assert nearest_bucket(*size, side=256) == (expected[0] // 4, expected[1] // 4)


def test_every_bucket_is_nearest_to_itself() -> None:
    for bucket in BUCKETS:
        assert nearest_bucket(*bucket) == bucket


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("16:9", (1344, 768)),
        ("9:16", (768, 1344)),
        ("1:1", (1024, 1024)),
        ("2.39:1", (1536, 640)),
        ("21:9", (1536, 640)),
        ("4:1", (2048, 512)),
        ("1:4", (512, 2048)),
    ],
)
def test_aspect(aspect: str, expected: tuple[int, int]) -> None:
    assert aspect_bucket("aspect", aspect) == expected
    assert aspect_bucket("aspect", aspect, 256) == (expected[0] // 4, expected[1] // 4)


@pytest.mark.parametrize(
    "aspect",
    [
        *("", ":", "16", "16:", ":9", "16:9:1", "16x9", "0:1", "1:0", "0:0", "-16:9", "16:-9", " 16:9", "16:9\n"),
        *("a:b", "nan:1", "inf:1", "1e3:1e3", "٣:٢", "1" * 5000 + ":1", "1.:1", "5:1", "1:4.001", "100000:1"),
        *(None, 1.5, 16, (16, 9), b"16:9"),
    ],
)
def test_aspects_refused(aspect: object) -> None:
    with pytest.raises(InputError, match=r"^aspect=") as error:
        aspect_bucket("aspect", aspect)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 220


def test_smallest_that_fits() -> None:
    sizes = [8, 1, 4]
    assert [smallest_that_fits(batch, sizes) for batch in range(1, 11)] == [1, 4, 4, 4, 8, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(
    ("images", "sizes", "expected"),
    [
        (0, [1, 4], []),
        (1, [4], [1]),
        (5, [1, 4], [4, 1]),
        (5, [8, 1], [5]),
        (10, [4], [4, 4, 2]),
        (10, [4, 6, 8], [6, 4]),  # not 8 and 2, which pads
        (1001, [8, 2, 1], [8] * 125 + [1]),
    ],
)
def test_rounds(images: int, sizes: list[int], expected: list[int]) -> None:
    assert rounds(images, sizes) == expected


@pytest.mark.parametrize("sizes", [[1], [3], [1, 2, 4], [8, 5], [2, 3, 7], [4, 6, 8], [1, 8], [5, 5, 3]])
def test_rounds_are_few_and_pad_least(sizes: list[int]) -> None:
    """Against every way there is."""
    for images in range(1, 25):
        found = rounds(images, sizes)
        count = -(-images // max(sizes))
        assert sum(found) == images
        assert len(found) == count
        assert min(found) > 0
        capacities = [sum(way) for way in itertools.combinations_with_replacement(set(sizes), count)]
        capacity = sum(smallest_that_fits(batch, sizes) for batch in found)
        assert capacity == min(total for total in capacities if total >= images)
        assert all(batch in sizes for batch in found[:-1])
