"""Encoded texts and pictures that are kept from call to call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

from jaxl.nn.layers import Params

MOST = 64  # of 0.3 MB each in SDXL and bfloat16, if they are texts

Encoded = TypeVar("Encoded")


class MadeWith:
    """What was worked out with some parameters, which are held weakly."""

    def __init__(self, params: Params):
        self._leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]

    def made_with(self, params: Params) -> bool:
        """Return whether the parameters are the very same arrays. NumPy's, which may change, never are."""
        leaves = jax.tree.leaves(params)
        return len(leaves) == len(self._leaves) and all(
            isinstance(leaf, jax.Array) and known() is leaf for known, leaf in zip(self._leaves, leaves, strict=True)
        )


class Embeddings(MadeWith):
    """Keeps the texts last encoded with some parameters, and pictures, `MOST` at most of both. Threads may share it."""

    def __init__(self, encoders: Params):
        super().__init__(encoders)
        self._kept: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, encode: Callable[[], Encoded]) -> Encoded:
        """Return what was kept under `key`, else the result of `encode`, and keep it."""
        with self._lock:
            found = self._kept.pop(key, None)
        found = encode() if found is None else found
        with self._lock:
            self._kept[key] = found  # as the latest one
            if len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
        return found
