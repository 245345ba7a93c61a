"""Adapters with random numbers, for a model at hand."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxl.run.adapters import layers
from jaxl.weights.adapters.adapter import Adapter
from jaxl.weights.adapters.changes import Added, Change
from jaxl.weights.adapters.decomposed import Decomposed
from jaxl.weights.adapters.low_rank import LowRank
from jaxl.weights.layout import to_torch

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
Kind = Callable[[np.random.Generator, tuple[int, ...], int], Change]


def low_rank(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> LowRank:
    """A LoRA of a layer with a weight of this shape in torch's layout."""
    outputs, inputs, *window = shape
    down = rng.standard_normal((rank, inputs, *window), np.float32) / np.sqrt(np.prod([inputs, *window]))
    up = rng.standard_normal((outputs, rank), np.float32) / np.sqrt(rank)
    return LowRank(down.astype(np.float32), up.astype(np.float32), scale=0.5)


def dora(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> Decomposed:
    return Decomposed(low_rank(rng, shape, rank), rng.uniform(0.5, 1.5, shape[0]).astype(np.float32), axis=0)


def full(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> Added:
    """A difference of the whole weight, which no program can add while it runs."""
    return Added((0.3 * rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))


def adapter(
    model: Any, name: str, seed: int, rank: int, *, kind: Kind = low_rank, within: str = "", components: Any = NETWORKS
) -> Adapter:
    """An adapter of all layers whose path has `within` in it."""
    rng = np.random.default_rng(seed)
    changes = {
        component: {
            f"{path}.weight": kind(rng, tuple(shape[axis] for axis in to_torch(f"{path}.weight", shape)), rank)
            for path, shape in layers(model, component).items()
            if within in path
        }
        for component in components
    }
    # of other numbers where anything is other, as that of a file: texts are kept by it
    digest = hashlib.sha256(repr((seed, rank, kind.__name__, within, components)).encode()).hexdigest()[:12]
    return Adapter(name, f"{name}.safetensors", digest, changes)
