"""The convolution of a picture at twice its size, without that picture."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels import Kernels
from jaxl.kernels.upsampled_conv import takes
from jaxl.nn.layers import upsampled_conv


@pytest.mark.parametrize("bias", [True, False])
def test_convolve(bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((2, 12, 11, 24), (3, 3, 24, 8)))
    p = {"weight": weight, **({"bias": jnp.linspace(-1, 1, 8)} if bias else {})}
    own, plain = (
        jax.jit(partial(upsampled_conv, p, height=24, width=22, kernels=kernels)).lower(x)
        for kernels in (Kernels(conv="winograd"), Kernels())
    )
    assert takes(x, weight)
    assert [text.as_text().count("stablehlo.convolution") for text in (own, plain)] == [4, 1]
    np.testing.assert_allclose(own.compile()(x), plain.compile()(x), atol=2e-5)
