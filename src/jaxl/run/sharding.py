"""Placement of arrays on a mesh of devices with one axis, `data`.

Images are split over the axis, so N devices make N times the images with one program; a single image is split over two
devices by its branches of guidance. Where images and branches do not fill the devices, networks run on the same ones as
a mesh that splits rows of pictures too (`split_pictures`). Parameters are on every device, or split over the same axis
and gathered layer by layer as they are needed, which costs time and saves memory (fully sharded data parallelism:
Rajbhandari et al. 2020, ZeRO stage 3, arXiv:1910.02054).

Devices may belong to several processes (`run.hosts`). Then each process puts arrays on its own devices, and reads the
images that they hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxl.config import Split
from jaxl.kernels.by_rows import ROWS
from jaxl.kernels.processor import cores

AXIS = "data"
WHOLE, EACH, PIXELS = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS, ROWS)

# Splitting a small tensor saves nothing and costs a collective.
MIN_SPLIT_SIZE = 2**16


# the number of a CPU's devices that are in no mesh by default
_spare = 0


def use_cores(spare: int = 0) -> None:
    """Let JAX have two devices on a CPU with two cores or more, unless its devices are known already or configured.

    Most operations are too small for XLA to split over cores, while a half of the batch to each core keeps both busy
    (docs/performance.md). All devices read the same parameters in memory. `spare` more devices are for work that the
    meshes should not wait for, as a device does one thing after another.
    """
    global _spare
    config: Any = jax.config
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config.jax_num_cpu_devices == -1 and not forced:
        with suppress(RuntimeError):  # JAX has started
            config.update("jax_num_cpu_devices", min(2, cores()) + spare)
            _spare = spare


def spare_device() -> Any | None:
    """Return a device that is in no mesh by default, if there is one; see `use_cores`."""
    found = jax.devices()
    return found[-1] if _spare and found[0].platform == "cpu" else None


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of the given devices; by default all but spare ones, sorted by process.

    See `hosts.join` and `use_cores`.
    """
    if devices is None:
        use_cores()
        found = jax.devices()
        devices = found if spare_device() is None else found[:-_spare]
        devices = sorted(devices, key=lambda device: device.process_index)
    return Mesh(np.asarray(devices), (AXIS,))


def shares(devices: int, images: int, branches: int, rows: int, split: Split) -> tuple[int, int]:
    """Return over how many devices evaluations of the network are split, and over how many each one's rows are.

    `rows` is how many parts a picture's rows can make. By default evaluations come first, as they need nothing of each
    other; "images" never splits rows, and "rows" splits one image's branches and then its rows, whatever the batch.
    Both numbers divide evenly, so there may be spare devices.
    """
    evaluations = branches if split == "rows" else images * branches
    across = max(n for n in _divisors(devices) if evaluations % n == 0)
    return across, 1 if split == "images" else max(n for n in _divisors(devices // across) if rows % n == 0)


def split_pictures(mesh: Mesh, across: int, each: int) -> Mesh:
    """Return the devices as a mesh of evaluations and rows, by `shares`; the same where evaluations are enough."""
    return mesh if across == mesh.size else Mesh(mesh.devices.reshape(across, each, -1), (AXIS, ROWS, "spare"))


def on_mesh(mesh: Mesh, sharding: NamedSharding) -> NamedSharding:
    """Return the same placement of an array, told by a mesh of `split_pictures` of the same devices."""
    spec = (mesh.axis_names if part == AXIS else part for part in sharding.spec)
    return NamedSharding(mesh, PartitionSpec(*spec))


def by_rows(run: Callable[..., Any], *arguments: PartitionSpec) -> Callable[..., Any]:
    """Return a function of pictures, run on each device for its part of them where `split_pictures` made the mesh.

    Arguments are WHOLE, split as EACH of the pictures, or by their PIXELS, as results are: see `kernels.by_rows`.
    """
    return jax.shard_map(run, in_specs=arguments, out_specs=PIXELS, check_vma=False) if splits_pictures() else run


def splits_pictures() -> bool:
    """Return whether the mesh of `jax.sharding.use_abstract_mesh` is one of `split_pictures`."""
    return ROWS in jax.sharding.get_abstract_mesh().axis_names


def devices_at_hand() -> int:
    """Return how many devices `jax.sharding.use_abstract_mesh` has; one without it."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def _divisors(n: int) -> list[int]:
    return [each for each in range(1, n + 1) if n % each == 0]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def split_images(mesh: Mesh, images: int, branches: int | None = None) -> NamedSharding:
    """Return the sharding of an array [images, ...] or [images, branches, ...]: split as far as it divides evenly."""
    if images % mesh.size == 0:
        return batch_sharding(mesh)
    if images == 1 and branches is not None and branches % mesh.size == 0:
        return NamedSharding(mesh, PartitionSpec(None, AXIS))
    return replicated(mesh)


def own_images(mesh: Mesh, images: int) -> list[int]:
    """Return this process's images of a batch that `split_images` has placed; each image belongs to one process."""
    owners = [device.process_index for device in mesh.devices.flat]
    if images % mesh.size:  # all are on every device
        owners = owners[:1]
    each = images // len(owners)
    return [image for image in range(images) if owners[image // each] == jax.process_index()]


def on_host(array: jax.Array, rows: Sequence[int]) -> np.ndarray:
    """Return rows of the leading axis; this process's devices must hold them."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)[list(rows)]
    held: dict[int, np.ndarray] = {}
    for shard in array.addressable_shards:
        held.update(enumerate(np.asarray(shard.data), shard.index[0].start or 0))
    return np.stack([held[row] for row in rows]) if rows else np.empty((0, *array.shape[1:]), array.dtype)


def gathered(value: Any, mesh: Mesh) -> np.ndarray:
    """Return the processes' values, of one shape, stacked: one for each device, if there are several processes.

    All processes have to call it, and wait here for each other.
    """
    own = np.asarray(value)[None]
    if not mesh.is_multi_process:
        return own
    shape = (mesh.size, *own.shape[1:])
    stacked = jax.make_array_from_callback(shape, batch_sharding(mesh), lambda _: own)
    return np.asarray(jax.jit(_same, out_shardings=replicated(mesh))(stacked))


def _same(x: jax.Array) -> jax.Array:
    return x


def spread(x: jax.Array) -> jax.Array:
    """Split pictures [B, H, W, C] over the devices of `jax.sharding.use_abstract_mesh`: by picture, else by rows.

    XLA finds the rows' neighbours; where neither divides evenly, every device does all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or splits_pictures():
        return x
    if x.shape[0] % mesh.size == 0:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(AXIS))
    if x.shape[1] % mesh.size == 0:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, AXIS))
    return x


def whole(x: jax.Array) -> jax.Array:
    """Put the whole array on every device of `jax.sharding.use_abstract_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.manual_axes else jax.lax.with_sharding_constraint(x, PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_sharding(shapes: Any, sharding: NamedSharding) -> Any:
    """Return the tree of shapes, each leaf placed by `sharding`."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def place_parameters(shapes: Any, mesh: Mesh, *, split: bool) -> Any:
    """Return the tree of shapes, each leaf whole on every device or split along its largest evenly divisible axis."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not split or not axes or leaf.size < MIN_SPLIT_SIZE:
            return with_sharding(leaf, replicated(mesh))
        widest = max(axes, key=lambda i: leaf.shape[i])
        spec = PartitionSpec(*(AXIS if i == widest else None for i in range(len(leaf.shape))))
        return with_sharding(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)
