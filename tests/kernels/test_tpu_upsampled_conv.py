"""Convolutions of pictures at twice their size, interpreted, beside the enlarged picture's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels import tpu_upsampled_conv
from jaxl.nn.layers import conv, upsample


@pytest.mark.parametrize(
    ("height", "width", "inputs", "outputs"),
    [(3, 16, 24, 64), (20, 32, 8, 512)],  # the second in several programs in each direction
)
def test_equals_a_convolution_of_the_enlarged_picture(height: int, width: int, inputs: int, outputs: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, inputs), jnp.bfloat16)
    weight = jax.random.normal(keys[1], (3, 3, inputs, outputs), jnp.bfloat16) / (9 * inputs) ** 0.5
    bias = jax.random.normal(keys[2], (outputs,))
    assert tpu_upsampled_conv.takes(x, weight)
    ours = tpu_upsampled_conv.conv(x, weight, bias, interpret=True)
    assert ours.dtype == jnp.bfloat16
    exact = {"weight": weight.astype(jnp.float32), "bias": bias}
    theirs = conv(exact, upsample(x.astype(jnp.float32), 2 * height, 2 * width))
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=0.02, atol=0.02)


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
