"""Winograd's convolution is the convolution."""

import jax
import numpy as np
import pytest
from jax import lax

from jaxl.kernels.winograd import convolve, transformed


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 3), (16, 10)])
def test_convolve(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 12), np.float32)
    weight = rng.standard_normal((3, 3, 12, 20), np.float32)
    exact = lax.conv_general_dilated(
        x.astype(np.float64), weight, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    error = np.abs(np.asarray(jax.jit(convolve)(x, transformed(weight))) - np.asarray(exact)).max()
    assert error < 1e-6 * np.abs(exact).max() * 4
    other = np.abs(np.asarray(convolve(x, transformed(weight[::-1]))) - np.asarray(exact)).max()
    assert size == (1, 1) or other > 0.1 * np.abs(exact).max()
