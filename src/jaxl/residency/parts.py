"""A model's networks by what is in them: so equal ones are known, and held once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jaxl.nn.layers import Params
from jaxl.weights.layout import flatten, placed, unflatten

DIGEST_THREADS = 4


def digests(params: Mapping[str, Params]) -> dict[str, str]:
    """Return the digest of each network: of the names, dtypes and numbers of all its parameters."""
    with ThreadPoolExecutor(DIGEST_THREADS, thread_name_prefix="digest") as threads:
        found = {}
        for component, tree in params.items():
            leaves = flatten(tree)
            own = zip(leaves, leaves.values(), threads.map(_digest, leaves.values()), strict=True)
            text = "\n".join(f"{key} {leaf.dtype} {leaf.shape} {digest}" for key, leaf, digest in own)
            found[component] = hashlib.sha256(text.encode()).hexdigest()
        return found


def nbytes(tree: Params) -> int:
    """Return the bytes of parameters, or of their shapes, on each device."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in flatten(tree).values())


def on_host(tree: Params) -> Params:
    """Return parameters in host memory; those of a CPU are there already, and not copied."""
    return unflatten({key: _array(leaf) for key, leaf in flatten(tree).items()})


def on_devices(tree: Params, shapes: Params) -> Params:
    """Return parameters on the devices, where `shapes` say."""
    places = flatten(shapes)
    return unflatten({key: placed(leaf, places[key].sharding) for key, leaf in flatten(tree).items()})


def _array(leaf: jax.Array) -> np.ndarray:
    return np.asarray(leaf.addressable_data(0))


def _digest(leaf: jax.Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(_array(leaf)).view(np.uint8).data).hexdigest()
