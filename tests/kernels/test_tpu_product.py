"""Products in int8 for TPUs, interpreted, beside the layers that XLA compiles anywhere."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

from jaxl.kernels import XLA, Kernels, tpu_product
from jaxl.nn.layers import gelu, layer_norm, linear
from jaxl.nn.quantised import quantise_weight, scale_of
from jaxl.nn.unet import transformer_block, transformer_block_shapes
from jaxl.weights.layout import flatten, unflatten
from jaxl.weights.quantise import layers

QUANTISE = jax.jit(quantise_weight, static_argnums=1)
OURS = jax.jit(partial(tpu_product.product, interpret=True), static_argnames="gate")


def layer(inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A quantised layer whose input scale cuts off what is beyond 3."""
    weight, scale = QUANTISE(np.asarray(normal(0, inputs, outputs)) / np.float32(inputs**0.5), jnp.int8)
    return {
        "weight": weight,
        "scale": scale,
        "bias": normal(1, outputs),
        "input_scale": scale_of(jnp.float32(3.0), jnp.int8),
    }


def product(p: dict[str, jax.Array], x: jax.Array, **more: Any) -> jax.Array:
    return OURS(x, p["weight"], p["input_scale"], p["scale"], p.get("bias"), **more)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype", "normed"),
    [
        (300, 256, 512, jnp.bfloat16, True),  # the last rows do not fill a program
        (8, 128, 2560, jnp.float32, False),  # several programs
    ],
)
def test_equals_the_layer(rows: int, inputs: int, outputs: int, dtype: Any, normed: bool) -> None:
    p, x = layer(inputs, outputs), normal(2, rows, inputs, dtype=dtype)
    norm = {"weight": normal(3, inputs), "bias": normal(4, inputs)}
    residual = normal(5, rows, outputs, dtype=dtype)
    own = (norm["weight"], norm["bias"]) if normed else None
    assert tpu_product.takes(x, p["weight"])

    @jax.jit
    def plain(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        theirs = linear(p, layer_norm(norm, x) if normed else x)
        first, second = jnp.split(theirs, 2, axis=-1)
        return theirs + residual, first * gelu(second)

    added, gated = plain(x)
    # a rounded input may be the next number, where 1 / scale is not exact
    tolerance = 1e-5 if dtype == jnp.float32 else 0.06

    def alike(ours: jax.Array, wanted: jax.Array) -> None:
        assert ours.dtype == dtype
        numbers = (np.asarray(each, np.float32) for each in (ours, wanted))
        np.testing.assert_allclose(*numbers, rtol=tolerance, atol=tolerance)

    alike(product(p, x, norm=own, residual=residual), added)
    alike(product(p, x, norm=own, gate=gelu), gated)


def test_a_layer_without_a_bias() -> None:
    p, x = layer(128, 256), normal(2, 8, 128)
    del p["bias"]
    np.testing.assert_allclose(product(p, x), linear(p, x), rtol=1e-5, atol=1e-5)


def test_a_block_is_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, ...]] = []

    def interpreted(x: jax.Array, weight: jax.Array, *rest: Any, **more: Any) -> jax.Array:
        called.append(weight.shape)
        return product(x, weight, *rest, **more, interpret=True)

    product = tpu_product.product
    monkeypatch.setattr(tpu_product, "product", interpreted)
    shapes = transformer_block_shapes(128, 64, jnp.float32)
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    params = jax.tree.map(lambda leaf: drawn(*leaf.shape) / np.float32(leaf.shape[0] ** 0.5), shapes)
    leaves = flatten({"0": {"transformer_blocks": {"0": params}}})
    for path in layers(unflatten(leaves)):
        leaves[f"{path}.weight"], leaves[f"{path}.scale"] = QUANTISE(leaves[f"{path}.weight"], jnp.int8)
        leaves[f"{path}.input_scale"] = scale_of(jnp.float32(4.0), jnp.int8)
    p = unflatten(leaves)["0"]["transformer_blocks"]["0"]
    context = {name: drawn(2, 5, 128) for name in ("k", "v")}
    block = jax.jit(
        lambda tokens, kernels: transformer_block(p, tokens, context, 2, kernels, None, None, {}), static_argnums=1
    )
    tokens = drawn(2 * 16, 128)
    made = [block(tokens, each) for each in (XLA, Kernels(product="tpu"))]
    assert len(called) == 8
    np.testing.assert_allclose(made[1], made[0], rtol=0, atol=0.05)


def test_takes_sdxl_and_leaves_the_rest() -> None:
    def takes(rows: tuple[int, ...], weight: tuple[int, ...], dtype: Any = jnp.int8, halves: int = 1) -> bool:
        x = jax.ShapeDtypeStruct(rows, jnp.bfloat16)
        return tpu_product.takes(x, jax.ShapeDtypeStruct(weight, dtype), halves)

    for width, tokens in ((640, 8192), (1280, 2048)):
        assert takes((tokens, width), (width, width))
        assert takes((tokens, width), (width, 8 * width), halves=2)
        assert takes((tokens, 4 * width), (4 * width, width))
    assert not takes((8, 128), (128, 256), halves=2)
    assert not takes((2, 8, 128), (128, 256))
    assert not takes((8, 128), (128, 256), jnp.float8_e4m3fn)
    assert not takes((8, 96), (96, 256))
    assert not takes((8, 128), (128, 64))
    assert not takes((8, 128), (128, 1920))  # parts of a vector that begin within a tile
    assert not takes((8, 2**15), (2**15, 1280))
