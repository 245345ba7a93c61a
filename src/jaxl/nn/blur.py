"""A Gaussian blur of features, of which images may have different ones: a matrix for each axis."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxl.kernels import by_rows

WIDEST = 9999.0  # a sigma above it means the mean of all places


def blur_matrix(sigma: Array, n: int) -> Array:
    """Return what blurs n places in a row by sigma [B] above 0: [B, n, n] float32.

    The kernel reaches three sigmas far, at most over half of the places, and is reflected at the edges.
    """
    mean, most = sigma > WIDEST, n // 2
    sigma = jnp.where((sigma > 0) & ~mean, sigma, 1.0)[:, None]
    offsets = np.arange(-most, most + 1)
    kernel = jnp.where(np.abs(offsets) <= jnp.ceil(6 * sigma) // 2, jnp.exp(-0.5 * (offsets / sigma) ** 2), 0.0)
    places = np.abs(np.arange(n)[:, None] + offsets)
    seen = np.eye(n, dtype=np.float32)[np.where(places < n, places, 2 * (n - 1) - places)]
    matrix = jnp.einsum("bo,ion->bin", kernel / kernel.sum(1, keepdims=True), seen)
    return jnp.where(mean[:, None, None], 1 / n, matrix)


def blurred(tokens: Array, rows: Array, columns: Array) -> Array:
    """Return tokens [B, T, C] of pictures, blurred along both axes by matrices [B, H, H] and [B, W, W]."""
    whole = by_rows.whole(tokens)
    grid = whole.reshape(len(whole), rows.shape[1], columns.shape[1], -1)
    for how, matrix in (("bij,bjwc->biwc", rows), ("bij,bhjc->bhic", columns)):
        grid = jnp.einsum(how, matrix.astype(grid.dtype), grid)
    return by_rows.own(grid).reshape(tokens.shape)
