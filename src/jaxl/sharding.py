"""Where arrays live: a mesh of devices with one axis, `data`.

Images are split over the axis, so N devices make N times the images with one program. Parameters are on every
device, or split over the same axis and gathered layer by layer as they are needed, which costs time and saves memory
(fully sharded data parallelism: Rajbhandari et al. 2020, ZeRO stage 3, arXiv:1910.02054).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"

# Splitting a small tensor saves nothing and costs a collective.
MIN_SPLIT_SIZE = 2**16


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the given devices, by default all that this process sees."""
    return Mesh(np.asarray(devices if devices is not None else jax.devices()), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_sharding(shapes: Any, sharding: NamedSharding) -> Any:
    """The tree of shapes, each leaf placed by `sharding`."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def place_parameters(shapes: Any, mesh: Mesh, *, split: bool) -> Any:
    """The tree of shapes, each leaf whole on every device, or split along its largest axis that divides evenly."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not split or not axes or leaf.size < MIN_SPLIT_SIZE:
            return with_sharding(leaf, replicated(mesh))
        widest = max(axes, key=lambda i: leaf.shape[i])
        spec = PartitionSpec(*(AXIS if i == widest else None for i in range(len(leaf.shape))))
        return with_sharding(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)
