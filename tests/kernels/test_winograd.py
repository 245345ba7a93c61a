"""Winograd's convolution is the convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxl.kernels import Kernels
from jaxl.kernels.winograd import BLOCK_BYTES, convolve, pays, transformed
from jaxl.nn.layers import conv
from jaxl.run.sharding import AXIS


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


def test_large_pictures_are_gone_through_in_blocks() -> None:
    """Each device through its own; where they do not divide evenly, XLA has its own convolution."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((2, 90, 70, 64), (3, 3, 64, 64)))
    p = {"weight": weight, "bias": jnp.linspace(-1, 1, 64)}
    assert 16 * x.size > 4 * BLOCK_BYTES
    own, plain = (partial(conv, p, kernels=kernels) for kernels in (Kernels(conv="winograd"), Kernels()))
    exact = np.asarray(jax.jit(plain)(x))
    np.testing.assert_allclose(jax.jit(own)(x), exact, atol=2e-4)
    np.testing.assert_array_equal(convolve(x, weight), convolve(x, transformed(weight)))
    assert jax.jit(own).lower(x).as_text().count("while") == 1
    for devices, pictures in ((2, True), (4, False)):
        mesh = jax.make_mesh((devices,), (AXIS,), devices=jax.devices()[:devices])
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            assert pays(x, weight) == pictures
            split = jax.NamedSharding(mesh, jax.P(AXIS if pictures else None))
            given = jax.device_put(x, split)
            compiled = jax.jit(own).lower(given).compile()
        np.testing.assert_allclose(compiled(given), exact, atol=2e-4)
        assert "all-" not in (compiled.as_text() or "")
