"""Normalised convolutions for TPUs, interpreted, beside what XLA compiles anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxl.kernels import tpu_conv
from jaxl.nn.layers import conv
from jaxl.nn.quantised import quantise_weight, scale_of


def reference(x, weight, bias, norm, residual):
    f = x
    if norm is not None:
        scale, shift = norm
        f = jax.nn.silu(x.astype(jnp.float32) * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)
    y = lax.conv_general_dilated(
        f,
        weight,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.float32,
    )
    y = y + bias
    return y if residual is None else y + residual.astype(jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "inputs", "outputs", "normed", "with_residual"),
    [
        (8, 16, 32, 64, True, True),
        (3, 16, 24, 320, False, False),
        (40, 32, 8, 512, True, True),  # several programs in each direction
    ],
)
def test_equals_xla(
    height: int, width: int, inputs: int, outputs: int, normed: bool, with_residual: bool, dtype: jnp.dtype
) -> None:
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(keys[0], (2, height, width, inputs), dtype)
    weight = 0.1 * jax.random.normal(keys[1], (3, 3, inputs, outputs), dtype)
    bias = jax.random.normal(keys[2], (outputs,))
    norm = (jax.random.normal(keys[3], (2, inputs)), jax.random.normal(keys[4], (2, inputs))) if normed else None
    residual = jax.random.normal(keys[5], (2, height, width, outputs), dtype) if with_residual else None
    assert tpu_conv.takes(x, weight)
    ours = tpu_conv.conv(x, weight, bias, norm, residual, interpret=True)
    assert ours.dtype == dtype
    tolerance = 2e-5 if dtype == jnp.float32 else 0.03
    theirs = reference(x, weight, bias, norm, residual)
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=tolerance, atol=tolerance)


def test_a_skip_is_joined() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x, weight = jax.random.normal(keys[0], (2, 8, 16, 200)), 0.1 * jax.random.normal(keys[1], (3, 3, 200, 64))
    norm = (jax.random.normal(keys[2], (2, 200)), jnp.ones((2, 200)))
    joined = tpu_conv.conv(x, weight, jnp.zeros(64), norm, interpret=True)
    own, skip = jnp.split(x, [tpu_conv.LANES], axis=-1)
    assert tpu_conv.takes(own, weight)
    np.testing.assert_array_equal(tpu_conv.conv(own, weight, jnp.zeros(64), norm, skip=skip, interpret=True), joined)


@pytest.mark.parametrize("with_norm", [True, False])
def test_int8_equals_xla(with_norm: bool) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (2, 8, 32, 24))
    weight, scale = quantise_weight(0.1 * jax.random.normal(keys[1], (3, 3, 24, 64)), jnp.int8)
    bias = jax.random.normal(keys[2], (64,))
    norm = (jax.random.normal(keys[3], (2, 24)), jax.random.normal(keys[4], (2, 24))) if with_norm else None
    input_scale = scale_of(jnp.float32(1.0), jnp.int8)
    assert tpu_conv.takes(x, weight)
    residual = jnp.ones((2, 8, 32, 64))
    ours = tpu_conv.conv(x, weight, bias, norm, residual, scales=(input_scale, scale), interpret=True)
    normed = x if norm is None else jax.nn.silu(x * norm[0][:, None, None] + norm[1][:, None, None])
    layer = {"weight": weight, "bias": bias, "scale": scale, "input_scale": input_scale}
    theirs = conv(layer, normed) + residual
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)  # a rounded input may be the next number
    assert np.median(np.abs(ours - theirs)) < 1e-6


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        ((1, 8, 20, 64), (3, 3, 64, 64)),  # rows of pixels that do not fill tiles
        ((1, 8, 16, 64), (1, 1, 64, 64)),
        ((1, 8, 16, 64), (3, 3, 64, 4)),
        ((1, 32, 32, 16384), (3, 3, 16384, 256)),  # weights that do not fit the chip
    ],
)
def test_leaves_other_shapes(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    assert not tpu_conv.takes(jax.ShapeDtypeStruct(x, jnp.bfloat16), jax.ShapeDtypeStruct(weight, jnp.bfloat16))


def test_takes_sdxl() -> None:
    for size, inputs, outputs in ((128, 960, 320), (64, 1920, 640), (32, 2560, 1280), (64, 1280, 1280)):
        x, weight = (2, size, size, inputs), (3, 3, inputs, outputs)
        assert tpu_conv.takes(jax.ShapeDtypeStruct(x, jnp.bfloat16), jax.ShapeDtypeStruct(weight, jnp.bfloat16))


@pytest.mark.parametrize("size", [(4, 8), (64, 32)])
def test_moments(size: tuple[int, int]) -> None:
    x = 100 + jax.random.normal(jax.random.key(0), (2, *size, 24))
    assert tpu_conv.takes_moments(x)
    mean, variance = tpu_conv.moments(x, interpret=True)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((1, 2)), rtol=1e-5)
