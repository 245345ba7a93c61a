"""Distances of pictures, where they are known."""

import numpy as np

from jaxl.bench.quality import compare, retrieval


def things(seed: int) -> np.ndarray:
    """Six pictures: rectangles of six colours and shapes, at random places on grey."""
    rng = np.random.default_rng(seed)
    pictures = np.full((6, 64, 64, 3), 0.5, np.float32)
    for i, picture in enumerate(pictures):
        top, left = rng.integers(8, 24, 2)
        height, width = ((10, 30), (30, 10), (20, 20))[i % 3]
        picture[top : top + height, left : left + width] = ((0.9, 0.1, 0.1), (0.1, 0.2, 0.9))[i // 3]
    return pictures


def test_equal_pictures() -> None:
    quality = compare(things(0), things(0))
    assert np.isinf(quality.psnr).all()
    np.testing.assert_allclose(quality.ssim, 1.0)


def test_known_distances() -> None:
    """A constant difference: PSNR is its logarithm, and of SSIM the luminance alone is left."""
    a = np.full((1, 32, 32, 3), 0.5)
    quality = compare(a, a + 0.1)
    np.testing.assert_allclose(quality.psnr, 20.0)
    np.testing.assert_allclose(quality.ssim, (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4))


def test_structure_matters_more_than_brightness() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 64, 64, 1)) * 0.1
    a = things(0)[:1]
    brighter, noisy = compare(a, a + 0.1), compare(a, a + noise)
    np.testing.assert_allclose(brighter.psnr, noisy.psnr, atol=0.3)
    assert brighter.ssim > noisy.ssim + 0.3


def test_retrieval_finds_the_same_thing_elsewhere() -> None:
    references = things(1)
    assert retrieval(things(0), references).all()
    assert not retrieval(things(0)[::-1], references).any()
    assert retrieval(np.full_like(references, 0.5), references).sum() <= 1
