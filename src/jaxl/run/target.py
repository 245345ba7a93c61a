"""The target that programs are compiled for: a model on devices, with the places of all arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxl.config import Split
from jaxl.nn.layers import Params
from jaxl.run.model import Model
from jaxl.run.sharding import replicated, shares, split_images, split_pictures

Leaf = Any  # an array on the devices or on the host, or the shape of one


def passing(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function as one of its own: JAX keeps what it traced of a function as long as that lives."""
    return partial(run)


def shapes_of(run: Callable[..., Any], *arguments: Any) -> Any:
    """Return the shapes of what a function makes of arguments with such shapes; it is only traced."""
    return jax.eval_shape(passing(run), *arguments)


@dataclass(frozen=True, eq=False)
class Target:
    """A model on devices, which programs are compiled for.

    `shapes` are the components' parameter trees with a sharding on each leaf; no values are needed, so programs compile
    while weights load, or for devices that are not there. `tile` makes the VAE work in tiles of so many pixels. With
    `split_parameters`, networks that come later are split over the devices too, as the shapes are. How
    devices share pictures, `split_pictures`, is as in `sharding.shares`, or None where parameters are split:
    then they are gathered layer by layer, for whatever each device works on.
    """

    model: Model
    mesh: Mesh
    shapes: dict[str, Params]
    tile: int | None = None
    split_parameters: bool = False
    split_pictures: Split | None = "auto"

    def split(self, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, branches: int | None = None) -> Leaf:
        """Return an argument whose leading axis, of images, is split over the devices; or the second, of `branches`."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split_images(self.mesh, shape[0], branches))

    def mesh_for(self, images: int, branches: int, rows: int) -> Mesh:
        """Return the devices as they share images, each in so many branches, by so many parts of rows at most."""
        how = self.split_pictures
        return split_pictures(self.mesh, *shares(self.mesh.size, images, branches, rows, how)) if how else self.mesh

    def whole(self, shape: tuple[int, ...], dtype: DTypeLike) -> Leaf:
        """Return an argument that every device has."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))
