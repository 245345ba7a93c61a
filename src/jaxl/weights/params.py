"""A checkpoint's parameters, read and placed on the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxl.weights.checkpoint import Checkpoint, load_params
from jaxl.weights.layout import flatten, placed
from jaxl.weights.winograd import with_winograd, without_winograd


def read_params(checkpoint: Checkpoint, shapes: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Return the parameters of each component as `shapes` say, each of which has a sharding.

    Tensors are read, cast and placed one at a time; `progress` is told how many are there, and how many are to be.
    """
    stored = {name: without_winograd(tree) for name, tree in shapes.items()}
    shardings = {name: {key: leaf.sharding for key, leaf in flatten(tree).items()} for name, tree in stored.items()}
    params = load_params(
        checkpoint,
        stored,
        place=lambda component, key, array: placed(array, shardings[component][key]),
        progress=progress,
    )
    return {name: with_winograd(tree, shapes[name]) for name, tree in params.items()}
