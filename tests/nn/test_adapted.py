"""Layers with adapters: each image has a weight of its own in effect, which is never made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels import XLA
from jaxl.nn import layers
from jaxl.nn.layer_kinds import DOWN, SCALE_IN, SCALE_OUT, UP, adapted, layer_of
from jaxl.nn.quantised import quantise_weight

IMAGES, RANK = 3, 2
linear = jax.jit(layers.linear)
conv = jax.jit(layers.conv, static_argnames=("stride", "padding", "kernels"))
linear_of_both = jax.jit(lambda p, x, skip: layer_of(p).linear_of_both(x, skip))


def layer(rng: np.random.Generator, *shape: int, bias: bool = True) -> dict[str, Any]:
    tree = {"weight": rng.standard_normal(shape, np.float32)}
    return tree | ({"bias": rng.standard_normal(shape[-1:], np.float32)} if bias else {})


def adapters(rng: np.random.Generator, *shape: int, scaled: bool) -> dict[str, Any]:
    *window, inputs, outputs = shape
    tree = {
        DOWN: rng.standard_normal((IMAGES, inputs, *window, RANK), np.float32),
        UP: rng.standard_normal((IMAGES, RANK, outputs), np.float32),
    }
    if scaled:
        tree[SCALE_IN] = rng.uniform(0.5, 2, (IMAGES, inputs)).astype(np.float32)
        tree[SCALE_OUT] = rng.uniform(0.5, 2, (IMAGES, outputs)).astype(np.float32)
    return tree


def in_effect(p: dict[str, Any], a: dict[str, Any], image: int) -> dict[str, Any]:
    """The parameters of a plain layer that does the same for one image."""
    weight = p["weight"].astype(np.float64)
    if SCALE_IN in a:
        weight = weight * a[SCALE_IN][image][:, None] * a[SCALE_OUT][image]
    down = np.moveaxis(a[DOWN][image], 0, -2) if a[DOWN].ndim > 3 else a[DOWN][image]
    return {**p, "weight": (weight + down.astype(np.float64) @ a[UP][image]).astype(np.float32)}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (2, 6), (2, 4, 6)])  # of what comes in, for each image
def test_linear(scaled: bool, bias: bool, shape: tuple[int, ...]) -> None:
    """Rows of an image are neighbours, be they branches, positions, or both."""
    rng = np.random.default_rng(0)
    p, a = layer(rng, shape[-1], 7, bias=bias), adapters(rng, shape[-1], 7, scaled=scaled)
    x = rng.standard_normal((IMAGES, *shape), np.float32)
    got = linear({**p, **a}, x.reshape(-1, *shape[1:]))
    want = np.concatenate([linear(in_effect(p, a, i), x[i]) for i in range(IMAGES)])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 1, None), (3, 2, (1, 1)), (3, 2, (0, 1)), (1, 1, None), (1, 2, None)]
)
def test_conv(scaled: bool, window: int, stride: int, padding: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(0)
    shape = (window, window, 4, 7)
    p, a = layer(rng, *shape), adapters(rng, *shape, scaled=scaled)
    x = rng.standard_normal((IMAGES, 2, 6, 8, 4), np.float32)
    got = conv({**p, **a}, x.reshape(-1, 6, 8, 4), stride=stride, padding=padding)
    want = np.concatenate([conv(in_effect(p, a, i), x[i], stride=stride, padding=padding) for i in range(IMAGES)])
    np.testing.assert_allclose(got, want, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_linear_of_both(scaled: bool) -> None:
    rng = np.random.default_rng(0)
    p, a = layer(rng, 1, 1, 10, 7), adapters(rng, 1, 1, 10, 7, scaled=scaled)
    x, skip = (rng.standard_normal((IMAGES, 3, 3, size), np.float32) for size in (6, 4))
    got = linear_of_both({**p, **a}, x, skip)
    want = np.concatenate([linear_of_both(in_effect(p, a, i), x[i : i + 1], skip[i : i + 1]) for i in range(IMAGES)])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_no_columns_that_do_anything_change_no_bit() -> None:
    """An image without adapters is what it is in a program without room for any."""
    rng = np.random.default_rng(0)
    p, a = layer(rng, 3, 3, 4, 7), adapters(rng, 3, 3, 4, 7, scaled=False)
    x = rng.standard_normal((IMAGES, 6, 8, 4), np.float32)
    got = conv({**p, **a, UP: np.zeros_like(a[UP])}, x, kernels=XLA)
    assert (np.asarray(got) == np.asarray(conv(p, x, kernels=XLA))).all()


@pytest.mark.parametrize("scaled", [False, True])
def test_beside_eight_bits(scaled: bool) -> None:
    """The factors stay as exact as they are."""
    rng = np.random.default_rng(0)
    p, a = layer(rng, 8, 7), adapters(rng, 8, 7, scaled=scaled)
    x = rng.standard_normal((IMAGES, 5, 8), np.float32)
    weight, scale = jax.jit(quantise_weight, static_argnums=1)(p["weight"], jnp.int8)
    eight = {"weight": weight, "bias": p["bias"], "scale": scale, "input_scale": np.float32(0.02)}
    got = linear({**eight, **a}, x)
    x_in, out = (1.0, 1.0) if not scaled else (a[SCALE_IN][:, None], a[SCALE_OUT][:, None])
    base = np.asarray(linear({**eight, "bias": np.zeros(7, np.float32)}, x * x_in)) * out + p["bias"]
    np.testing.assert_allclose(got, base + x @ a[DOWN] @ a[UP], rtol=2e-5, atol=2e-5)


def test_adapters_find_their_layers() -> None:
    tree = {"a": {"0": {"weight": 1, "bias": 2}}, "b": {"weight": 3}}
    assert adapted(tree, None) == tree
    got = adapted(tree, {"a": {"0": {DOWN: 4, UP: 5}}})
    assert got == {"a": {"0": {"weight": 1, "bias": 2, DOWN: 4, UP: 5}}, "b": {"weight": 3}}
    assert tree["a"]["0"] == {"weight": 1, "bias": 2}
