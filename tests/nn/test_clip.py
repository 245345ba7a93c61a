from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.nn.clip import emphasize


def hidden_and_weights(dtype: Any) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((3, 7, 16)) + 0.3, dtype)
    weights = np.ones((3, 7), np.float32)
    weights[1, 2:4], weights[2, 1:5] = 1.3, 0.6
    return hidden, jnp.asarray(weights)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_neutral_weights_change_no_bit(dtype: Any) -> None:
    hidden, weights = hidden_and_weights(dtype)
    hidden = hidden.at[0, 0].set(3e38)  # the mean overflows, which must not matter
    got = jax.jit(emphasize)(hidden, weights)
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got[0]), np.asarray(hidden[0]))
    assert (np.asarray(got[1:], np.float32) != np.asarray(hidden[1:], np.float32)).any(axis=(1, 2)).all()


def test_each_text_keeps_its_mean_and_knows_no_other() -> None:
    hidden, weights = hidden_and_weights(jnp.float32)
    got = np.asarray(emphasize(hidden, weights))
    np.testing.assert_allclose(got.mean((1, 2)), np.asarray(hidden).mean((1, 2)), rtol=1e-5)
    for i in range(3):
        alone = emphasize(hidden[i : i + 1], weights[i : i + 1])
        np.testing.assert_allclose(got[i], alone[0], rtol=1e-6, atol=1e-7)
    ratio = got[1] / np.asarray(hidden[1])
    np.testing.assert_allclose(ratio[2:4], np.full((2, 16), 1.3 * ratio[0, 0]), rtol=1e-4)


def test_bfloat16_is_computed_in_float32() -> None:
    hidden, weights = hidden_and_weights(jnp.bfloat16)
    wanted = emphasize(hidden.astype(jnp.float32), weights).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(emphasize(hidden, weights)), np.asarray(wanted))


@pytest.mark.parametrize("hidden", [jnp.zeros((1, 2, 4)), jnp.asarray([[[1.0, 1.0], [-2.0, -2.0]]])])
def test_a_mean_of_zero_stays_finite(hidden: jax.Array) -> None:
    got = np.asarray(emphasize(hidden, jnp.asarray([[2.0, 1.0]])))
    assert np.isfinite(got).all()
