"""Normalised convolutions for TPUs, interpreted, beside what XLA compiles anywhere."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
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


def weights(inputs: int, outputs: int, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray((0.1 * np.asarray(normal(1, 3, 3, inputs, outputs))).astype(dtype))


REFERENCE = jax.jit(reference)
OURS = jax.jit(partial(tpu_conv.conv, interpret=True))


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
    x = normal(0, 2, height, width, inputs, dtype=dtype)
    weight = weights(inputs, outputs, dtype)
    bias = normal(2, outputs)
    norm = (normal(3, 2, inputs), normal(4, 2, inputs)) if normed else None
    residual = normal(5, 2, height, width, outputs, dtype=dtype) if with_residual else None
    assert tpu_conv.takes(x, weight)
    ours = OURS(x, weight, bias, norm, residual)
    assert ours.dtype == dtype
    tolerance = 2e-5 if dtype == jnp.float32 else 0.03
    theirs = REFERENCE(x, weight, bias, norm, residual)
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=tolerance, atol=tolerance)


def test_a_skip_is_joined() -> None:
    x, weight, bias = normal(0, 2, 8, 16, 200), weights(200, 64), np.zeros(64, np.float32)
    norm = (normal(2, 2, 200), np.ones((2, 200), np.float32))
    joined = OURS(x, weight, bias, norm)
    own, skip = np.split(x, [tpu_conv.LANES], axis=-1)
    assert tpu_conv.takes(own, weight)
    np.testing.assert_array_equal(OURS(own, weight, bias, norm, skip=skip), joined)


@pytest.mark.parametrize("with_norm", [True, False])
def test_int8_equals_xla(with_norm: bool) -> None:
    x, bias = normal(0, 2, 8, 32, 24), normal(2, 64)
    weight, scale = quantise_weight(weights(24, 64), jnp.int8)
    norm = (normal(3, 2, 24), normal(4, 2, 24)) if with_norm else None
    input_scale = scale_of(jnp.float32(1.0), jnp.int8)
    assert tpu_conv.takes(x, weight)
    residual = np.ones((2, 8, 32, 64), np.float32)
    ours = OURS(x, weight, bias, norm, residual, scales=(input_scale, scale))
    layer = {"weight": weight, "bias": bias, "scale": scale, "input_scale": input_scale}

    @jax.jit
    def plain(x: jax.Array) -> jax.Array:
        normed = x if norm is None else jax.nn.silu(x * norm[0][:, None, None] + norm[1][:, None, None])
        return conv(layer, normed) + residual

    theirs = np.asarray(plain(x))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)  # a rounded input may be the next number
    assert np.median(np.abs(np.asarray(ours) - theirs)) < 1e-6


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
    x = jnp.asarray(100 + np.asarray(normal(0, 2, *size, 24)))
    assert tpu_conv.takes_moments(x)
    mean, variance = tpu_conv.moments(x, interpret=True)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((1, 2)), rtol=1e-5)
