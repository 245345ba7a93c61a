"""Kernels of our own, run on each device for its images; XLA cannot see into them, and so cannot split them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec


def by_image(kernel: Callable[..., Any], images: tuple[Array, ...], whole: tuple[Array, ...] = ()) -> Any:
    """Return `kernel(*images, *whole)`; the leading axis of `images` and of all results counts images.

    Under `jax.sharding.use_abstract_mesh` that axis is split over the devices if it divides evenly; else each device
    does all. In a `jax.shard_map` it is split already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _alone():
        return kernel(*images, *whole)
    own = PartitionSpec(mesh.axis_names if divides(images[0].shape[0]) else None)
    specs = (own,) * len(images) + (PartitionSpec(),) * len(whole)
    return jax.shard_map(kernel, in_specs=specs, out_specs=own, check_vma=False)(*images, *whole)


def divides(images: int) -> bool:
    """Return whether no device does what another does, for so many images."""
    return _alone() or images % jax.sharding.get_abstract_mesh().size == 0


def _alone() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1 or bool(mesh.manual_axes)
