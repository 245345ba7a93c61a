"""Products in int8 for TPUs, interpreted, beside the layers that XLA compiles anywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels import tpu_product
from jaxl.nn.layers import gelu, layer_norm, linear
from jaxl.nn.quantised import quantise_weight, scale_of

KEYS = jax.random.split(jax.random.key(0), 6)


def layer(inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A quantised layer whose input scale cuts off what is beyond 3."""
    weight, scale = quantise_weight(jax.random.normal(KEYS[0], (inputs, outputs)) / inputs**0.5, jnp.int8)
    bias = jax.random.normal(KEYS[1], (outputs,))
    return {"weight": weight, "scale": scale, "bias": bias, "input_scale": scale_of(jnp.float32(3.0), jnp.int8)}


def product(p: dict[str, jax.Array], x: jax.Array, **more: Any) -> jax.Array:
    return tpu_product.product(x, p["weight"], p["input_scale"], p["scale"], p.get("bias"), **more, interpret=True)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype"),
    [
        (16, 128, 256, jnp.float32),
        (300, 256, 512, jnp.bfloat16),  # the last rows do not fill a program
        (8, 128, 2560, jnp.float32),  # several programs
    ],
)
def test_equals_the_layer(rows: int, inputs: int, outputs: int, dtype: Any, normed: bool) -> None:
    p, x = layer(inputs, outputs), jax.random.normal(KEYS[2], (rows, inputs), dtype)
    norm = {"weight": jax.random.normal(KEYS[3], (inputs,)), "bias": jax.random.normal(KEYS[4], (inputs,))}
    residual = jax.random.normal(KEYS[5], (rows, outputs), dtype)
    own = (norm["weight"], norm["bias"]) if normed else None
    assert tpu_product.takes(x, p["weight"])
    theirs = linear(p, layer_norm(norm, x) if normed else x)
    first, second = jnp.split(theirs, 2, axis=-1)
    # a rounded input may be the next number, where 1 / scale is not exact
    tolerance = 1e-5 if dtype == jnp.float32 else 0.06

    def alike(ours: jax.Array, wanted: jax.Array) -> None:
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), wanted.astype(jnp.float32), rtol=tolerance, atol=tolerance)

    alike(product(p, x, norm=own, residual=residual), theirs + residual)
    alike(product(p, x, norm=own, gate=gelu), first * gelu(second))


def test_a_layer_without_a_bias() -> None:
    p, x = layer(128, 256), jax.random.normal(KEYS[2], (8, 128))
    del p["bias"]
    np.testing.assert_allclose(product(p, x), linear(p, x), rtol=1e-5, atol=1e-5)


def test_takes_sdxl_and_leaves_the_rest() -> None:
    def takes(rows: tuple[int, ...], weight: tuple[int, ...], dtype: Any = jnp.int8, halves: int = 1) -> bool:
        x = jax.ShapeDtypeStruct(rows, jnp.bfloat16)
        return tpu_product.takes(x, jax.ShapeDtypeStruct(weight, dtype), halves)

    for width, tokens in ((640, 8192), (1280, 2048)):
        assert takes((tokens, width), (width, width))
        assert takes((tokens, width), (width, 8 * width), halves=2)
        assert takes((tokens, 4 * width), (4 * width, width))
    assert not takes((8, 128), (128, 128), halves=2)
    assert not takes((2, 8, 128), (128, 256))
    assert not takes((8, 128), (128, 256), jnp.float8_e4m3fn)
    assert not takes((8, 96), (96, 256))
    assert not takes((8, 128), (128, 64))
    assert not takes((8, 2**15), (2**15, 1280))
