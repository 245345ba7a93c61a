"""What is to be written of a model: tensors in torch's layout, each of which is made when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxl.weights.adapters.changes import Change
from jaxl.weights.adapters.combined import AdapterSet, applied, changes
from jaxl.weights.checkpoint import Checkpoint, cast, check_tensors
from jaxl.weights.layout import flatten, to_torch, torch_shape
from jaxl.weights.store import Tensor, write_safetensors
from jaxl.weights.winograd import without_winograd

FILE_DTYPES = ("float16", "bfloat16", "float32")  # that all programs read
OTHERS = {1: np.dtype(np.float16), 8: np.dtype(np.float32)}  # in place of dtypes with so many bytes


@dataclass(frozen=True)
class Entry:
    """A tensor of a file that is to be: `read()` makes the array, of this dtype and shape."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Entries = Mapping[str, Entry]  # by key


def entries_of_params(params: Mapping[str, Mapping[str, Any]], dtype: DTypeLike | None = None) -> dict[str, Entries]:
    """Return the entries of parameters by component and key, in their own dtype or in this one."""

    def entry(what: str, key: str, leaf: Any) -> Entry:
        kind, axes = np.dtype(leaf.dtype if dtype is None else dtype), to_torch(key, leaf.shape)
        return Entry(kind, torch_shape(key, leaf.shape), partial(_of_leaf, what, leaf, axes, kind))

    return {
        component: {
            key: entry(f"{component}: {key}", key, leaf) for key, leaf in flatten(without_winograd(tree)).items()
        }
        for component, tree in params.items()
    }


def entries_of_checkpoint(
    checkpoint: Checkpoint,
    shapes: Mapping[str, Mapping[str, Any]],
    adapters: AdapterSet = (),
    dtype: DTypeLike | None = None,
) -> dict[str, Entries]:
    """Return the entries of a checkpoint with adapters in its weights; nothing is read yet.

    A weight is computed in float32 and rounded once: to `dtype`, or to the tensor's own; float16 stands for eight bits,
    and float32 for 64. Raises CheckpointError if the checkpoint has other tensors than those of `shapes`.
    """

    def entry(what: str, tensor: Tensor, changed: Sequence[tuple[Change, float]]) -> Entry:
        kind = OTHERS.get(tensor.dtype.itemsize, tensor.dtype) if dtype is None else np.dtype(dtype)
        return Entry(kind, tensor.shape, partial(_of_tensor, what, tensor, changed, kind))

    found: dict[str, Entries] = {}
    for component, tree in shapes.items():
        wanted, tensors = flatten(tree), checkpoint.tensors[component]
        check_tensors(checkpoint, component, wanted)
        changed, source = changes(adapters, component), checkpoint.source_of(component)
        found[component] = {
            key: entry(f"{source}: {component}: {key}", tensors[key], changed.get(key, ())) for key in wanted
        }
    return found


def write_entries(
    file: Path, entries: Entries, tell: Callable[[], None], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; `tell` is called after each tensor. An OSError passes through."""

    def read(key: str) -> np.ndarray:
        array = entries[key].read()
        tell()
        return array

    write_safetensors(file, {key: (entry.dtype, entry.shape) for key, entry in entries.items()}, read, metadata)


def _of_leaf(what: str, leaf: Any, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    leaf = jnp.asarray(leaf)
    shards = [shard.data for shard in leaf.addressable_shards]
    # another array of the same memory, because jax keeps in an array what it gathers from devices for NumPy
    same = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
    return cast(what, np.asarray(same), axes, dtype)


def _of_tensor(what: str, tensor: Tensor, changed: Sequence[tuple[Change, float]], dtype: np.dtype) -> np.ndarray:
    array = tensor.read()
    if changed:
        array = applied(changed, array.astype(np.float32))
    return cast(what, array, tuple(range(array.ndim)), dtype)
