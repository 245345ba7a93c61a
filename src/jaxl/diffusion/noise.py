"""Random numbers that belong to one image: the same alone, in a batch, or spread over devices.

Each image has its own threefry key, made from its seed. The generator and its way of counting are named here rather
than left to JAX's configuration, so nothing a user switches changes a picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxl.errors import InputError


def image_key(seed: int) -> np.ndarray:
    """The key of `seed` (0 to 2^64 - 1), uint32 [2] on the host; below 2^32 it is `jax.random.key(seed)`'s."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError("seed", seed, "must be a whole number from 0 to 2**64 - 1")
    high, low = divmod(int(seed), 2**32)
    return np.array([high, low], np.uint32)


def initial_noise(keys: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise to start from, float32 [B, *shape], for `keys` uint32 [B, 2]. Differs from every row's noise."""
    return _normals(keys, jnp.zeros(jnp.shape(keys)[0], jnp.int32), shape)


def step_noise(keys: ArrayLike, row: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise for one row, float32 [B, *shape], for `keys` uint32 [B, 2] and `row` int32 [B]."""
    return _normals(keys, jnp.asarray(row, jnp.int32) + 1, shape)


def _normals(keys: ArrayLike, number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise with this `number` [B] of each key: 0 for the start, 1 + i for row i."""

    def one(key: jax.Array, number: jax.Array) -> jax.Array:
        stream = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), number)
        return jax.random.normal(stream, shape, jnp.float32)

    with jax.threefry_partitionable(True):
        return jax.vmap(one)(jnp.asarray(keys, jnp.uint32), number)
