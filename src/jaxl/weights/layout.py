"""Conversion between a checkpoint's layout (PyTorch) and the device's (NHWC, row vectors), by rules, not by names.

A convolution's [O, I, h, w] becomes [h, w, I, O]; a linear layer's [O, I] becomes [I, O]; embeddings and vectors stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight")
ROWS = 16  # moved at a time


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by their path, joined with dots: their key in a checkpoint."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def from_torch(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order of a checkpoint tensor's axes on the device, for `np.transpose`."""
    if len(shape) == 4:
        return (2, 3, 1, 0)
    if len(shape) == 2 and not key.endswith(EMBEDDINGS):
        return (1, 0)
    return tuple(range(len(shape)))


def to_torch(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order of a parameter's axes in a checkpoint: the inverse of `from_torch`."""
    return tuple(int(axis) for axis in np.argsort(from_torch(key, shape)))


def torch_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a parameter's shape in a checkpoint."""
    return tuple(shape[axis] for axis in to_torch(key, shape))


def rearranged(array: np.ndarray, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a new array of the given dtype with the axes in that order; never a view of `array`."""
    new = _room(tuple(array.shape[axis] for axis in axes), dtype)
    # NumPy does not know the 16-bit floats, and moves integers several times faster
    integer = np.dtype(f"u{dtype.itemsize}")
    target = new.view(integer).transpose(np.argsort(axes))
    # a few rows at a time, to stay in the cache between reading along one axis and writing along another
    rows = ROWS if axes != tuple(range(array.ndim)) else max(len(array), 1)
    for start in range(0, len(array), rows):
        target[start : start + rows] = array[start : start + rows].astype(dtype, copy=False).view(integer)
    return new


def placed(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Put an array on the devices of `sharding`; with several processes, each has the array and serves its devices."""
    # device_put would send it between processes, to check that all have the same
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins at a multiple of 64 bytes: JAX on CPUs takes it without copying, once for all."""
    new = _room(array.shape, array.dtype)
    new[...] = array
    return new


def filled(shape: tuple[int, ...], dtype: np.dtype, value: float) -> np.ndarray:
    """Return an array of one value that JAX on CPUs takes without copying, as that of `aligned`."""
    new = _room(shape, dtype)
    new.fill(value)
    return new


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that begins at a multiple of 64 bytes, as `aligned` needs."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)
