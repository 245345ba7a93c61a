from __future__ import annotations

import contextlib
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxl.diffusion.noise import image_key, initial_noise, step_noise
from jaxl.errors import InputError

SHAPE = (13, 7, 3)  # odd on purpose: vector loops leave a remainder
KEYS = np.stack([image_key(seed) for seed in (0, 1, 33, 2**32 - 1, 2**32, 2**40 + 7, 2**63, 2**64 - 1)])
ROWS = np.arange(8, dtype=np.int32) * 7

pytestmark = pytest.mark.usefixtures("optimised")  # without it there are no vector loops


def test_the_key_of_a_32_bit_seed_is_jax_s_own() -> None:
    for seed in (0, 1, 33, 2**31 - 1):
        np.testing.assert_array_equal(image_key(seed), jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))
    np.testing.assert_array_equal(image_key(2**32 - 1), [0, 2**32 - 1])


def test_larger_seeds_use_both_words() -> None:
    np.testing.assert_array_equal(image_key(2**40 + 7), [2**8, 7])
    assert image_key(2**64 - 1).dtype == np.uint32


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", None, True])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=r"seed=.*must be a whole number from 0 to 2\*\*64 - 1"):
        image_key(seed)


def test_noise_is_standard_normal_and_differs_by_image_and_row() -> None:
    draws = [initial_noise(KEYS, (32, 32, 4)), *(step_noise(KEYS, np.full(8, row), (32, 32, 4)) for row in range(4))]
    flat = np.stack([np.asarray(draw) for draw in draws]).reshape(40, -1)
    np.testing.assert_allclose(flat.mean(1), 0, atol=0.06)
    np.testing.assert_allclose(flat.std(1), 1, atol=0.05)
    assert np.abs(np.corrcoef(flat) - np.eye(40)).max() < 0.08


@pytest.mark.parametrize("jitted", [True, False])
def test_each_image_s_noise_is_the_same_alone_and_in_a_batch(jitted: bool) -> None:
    start = jax.jit(initial_noise, static_argnums=1) if jitted else initial_noise
    step = jax.jit(step_noise, static_argnums=2) if jitted else step_noise
    first, later = start(KEYS, SHAPE), step(KEYS, ROWS, SHAPE)
    for i in range(8):
        np.testing.assert_array_equal(start(KEYS[i : i + 1], SHAPE)[0], first[i])
        np.testing.assert_array_equal(step(KEYS[i : i + 1], ROWS[i : i + 1], SHAPE)[0], later[i])


def test_the_noise_is_the_same_over_eight_devices() -> None:
    devices = np.array(jax.devices())
    assert devices.size == 8
    mesh = Mesh(devices, "images")
    split = NamedSharding(mesh, PartitionSpec("images"))
    keys, rows = jax.device_put((KEYS, ROWS), split)
    sharded = jax.jit(step_noise, static_argnums=2, out_shardings=split)(keys, rows, SHAPE)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, jax.jit(step_noise, static_argnums=2)(KEYS, ROWS, SHAPE))


@pytest.mark.parametrize(
    "setting",
    [
        jax.threefry_partitionable(False),
        jax.default_prng_impl("rbg"),
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
    ],
    ids=["threefry_partitionable", "default_prng_impl", "enable_x64", "numpy_rank_promotion"],
)
def test_jax_s_settings_do_not_change_the_noise(setting: contextlib.AbstractContextManager[Any]) -> None:
    expected = np.asarray(step_noise(KEYS, ROWS, SHAPE))
    with setting:
        np.testing.assert_array_equal(step_noise(KEYS, ROWS, SHAPE), expected)
        assert step_noise(KEYS, ROWS, SHAPE).dtype == np.float32
