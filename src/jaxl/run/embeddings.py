"""Encoded texts that are kept from call to call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable

import jax

from jaxl.nn.layers import Params
from jaxl.run.bucket import Text

MAX_TEXTS = 64  # of 0.3 MB each in SDXL and bfloat16


class Embeddings:
    """Keeps the texts last encoded with some parameters, `MAX_TEXTS` at most.

    The parameters are held weakly. Threads may share it.
    """

    def __init__(self, encoders: Params):
        self._leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(encoders)]
        self._texts: dict[Hashable, Text] = {}
        self._lock = threading.Lock()

    def made_with(self, encoders: Params) -> bool:
        """Return whether the parameters are the very same arrays. NumPy's, which may change, never are."""
        leaves = jax.tree.leaves(encoders)
        return len(leaves) == len(self._leaves) and all(
            isinstance(leaf, jax.Array) and known() is leaf for known, leaf in zip(self._leaves, leaves, strict=True)
        )

    def get(self, key: Hashable, encode: Callable[[], Text]) -> Text:
        """Return the text that was kept under `key`, else the result of `encode`, and keep it."""
        with self._lock:
            text = self._texts.pop(key, None)
        text = encode() if text is None else text
        with self._lock:
            self._texts[key] = text  # as the latest one
            if len(self._texts) > MAX_TEXTS:
                del self._texts[next(iter(self._texts))]
        return text
