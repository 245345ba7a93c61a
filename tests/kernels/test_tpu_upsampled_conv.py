"""Convolutions of pictures at twice their size, interpreted, beside the enlarged picture's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

from jaxl.kernels import tpu_upsampled_conv
from jaxl.nn.layers import conv, upsample


@pytest.mark.parametrize(
    ("height", "width", "inputs", "outputs"),
    [(3, 16, 24, 64), (20, 32, 8, 512)],  # the second in several programs in each direction
)
def test_equals_a_convolution_of_the_enlarged_picture(height: int, width: int, inputs: int, outputs: int) -> None:
    rng, bias = np.random.default_rng(0), normal(2, outputs)
    x = normal(0, 2, height, width, inputs, dtype=jnp.bfloat16)
    weight = (rng.standard_normal((3, 3, inputs, outputs)) / (9 * inputs) ** 0.5).astype(jnp.bfloat16)
    assert tpu_upsampled_conv.takes(x, weight)
    ours = jax.jit(partial(tpu_upsampled_conv.conv, interpret=True))(x, weight, bias)
    assert ours.dtype == jnp.bfloat16
    exact = {"weight": weight.astype(np.float32), "bias": bias}
    theirs = jax.jit(lambda x: conv(exact, upsample(x, 2 * height, 2 * width)))(np.asarray(x, np.float32))
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("x", "weight", "dtype"),
    [
        ((1, 8, 20, 64), (3, 3, 64, 64), jnp.bfloat16),  # rows of pixels that do not fill tiles
        ((1, 8, 16, 64), (3, 3, 64, 4), jnp.bfloat16),
        ((1, 8, 16, 64), (1, 1, 64, 64), jnp.bfloat16),
        ((1, 8, 16, 64), (3, 3, 64, 64), jnp.float32),
        ((1, 32, 32, 16384), (3, 3, 16384, 256), jnp.bfloat16),  # weights that do not fit the chip
    ],
)
def test_leaves_other_shapes(x: tuple[int, ...], weight: tuple[int, ...], dtype: jnp.dtype) -> None:
    assert not tpu_upsampled_conv.takes(jax.ShapeDtypeStruct(x, dtype), jax.ShapeDtypeStruct(weight, dtype))


def test_takes_sdxl() -> None:
    for size, channels in ((32, 1280), (64, 640), (128, 512), (256, 512), (512, 256)):
        x, weight = (2, size, size, channels), (3, 3, channels, channels)
        assert tpu_upsampled_conv.takes(
            jax.ShapeDtypeStruct(x, jnp.bfloat16), jax.ShapeDtypeStruct(weight, jnp.bfloat16)
        )
