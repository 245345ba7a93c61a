"""Random arrays from NumPy, which compile nothing as jax's would for each shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> jax.Array:
    """Draw numbers of unit variance."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype))
