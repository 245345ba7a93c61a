"""Convolutions of pictures that wrap around, whatever the form of the convolution."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels import Kernels
from jaxl.kernels.winograd import transformed
from jaxl.nn.layer_kinds import WINOGRAD
from jaxl.nn.layers import conv, upsampled_conv

RNG = np.random.default_rng(1)
X, WEIGHT = RNG.standard_normal((2, 7, 10, 4), np.float32), RNG.standard_normal((3, 3, 4, 5), np.float32)
P = {"weight": jnp.asarray(WEIGHT), "bias": jnp.zeros(5)}


def naive(x: np.ndarray, wrap: tuple[bool, bool], stride: int) -> np.ndarray:
    for axis, around in enumerate(wrap, 1):
        sides = [(0, 0)] * 4
        sides[axis] = (1, 1)
        x = np.pad(x, sides, mode="wrap" if around else "constant")
    shifted = [x[:, i : x.shape[1] - 2 + i, j : x.shape[2] - 2 + j] @ WEIGHT[i, j] for i in range(3) for j in range(3)]
    return sum(shifted)[:, ::stride, ::stride]  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("wrap", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("stride", [1, 2])
def test_edges(wrap: tuple[bool, bool], stride: int) -> None:
    wanted = naive(X, wrap, stride)
    np.testing.assert_allclose(conv(P, jnp.asarray(X), stride=stride, padding=(1, 1), wrap=wrap), wanted, atol=1e-4)
    if stride == 1:
        own = {**P, WINOGRAD: jnp.asarray(transformed(WEIGHT))}
        np.testing.assert_allclose(
            conv(own, jnp.asarray(X), kernels=Kernels(conv="winograd"), wrap=wrap), wanted, atol=1e-4
        )
        large = naive(X.repeat(2, 1).repeat(2, 2), wrap, 1)
        np.testing.assert_allclose(upsampled_conv(P, jnp.asarray(X), 14, 20, Kernels(wrap=wrap)), large, atol=1e-4)
