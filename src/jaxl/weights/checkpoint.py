"""A checkpoint, wherever it comes from, and the way of its tensors onto the devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.errors import CheckpointError
from jaxl.weights.layout import flatten, from_torch, rearranged, torch_shape, unflatten
from jaxl.weights.store import Tensor

# Saved text encoders hold these too, which SDXL does not read: a buffer of older versions of transformers (0, 1, 2,
# ...), a number of CLIP's training, and the projection where the other encoder gives the pooled prompt.
IGNORED = re.compile(r"(text_model\.)?(embeddings\.position_ids|logit_scale)|text_projection\.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A model, opened but not read.

    `source` is what the user named. `configs` holds the raw JSON of each component present (`unet`, `vae`,
    `text_encoder`, `text_encoder_2`), of the `scheduler`, and of `model_index`. `tensors` maps a component and its
    diffusers key to a tensor in a file. `tokenizers` maps `tokenizer` and `tokenizer_2`, where present, to a folder, or
    to None for the CLIP vocabulary that jaxl ships. The SDXL refiner has no `text_encoder` and no `tokenizer`; a single
    file may have no `vae`. `predicts_by` is where the prediction type was found. `sources` maps each component that
    the user replaced to what the user named for it.
    """

    source: str
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Tensor]]
    tokenizers: Mapping[str, Path | None]
    predicts_by: str = "its scheduler config"
    sources: Mapping[str, str] = field(default_factory=dict)

    def source_of(self, component: str) -> str:
        """Return what the user named as the source of a component."""
        return self.sources.get(component, self.source)

    def files(self) -> list[Path]:
        """Return the weight files, each once."""
        return sorted({tensor.file for tensors in self.tensors.values() for tensor in tensors.values()})


def load_params(
    checkpoint: Checkpoint,
    shapes: Mapping[str, Mapping[str, Any]],
    *,
    place: Callable[[str, str, np.ndarray], jax.Array],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Read, cast and place every tensor, one at a time.

    `shapes` are the parameter trees by component, with the dtypes to cast to; `place(component, key, array)` puts an
    array on the devices; `progress(done, total)` is called after each tensor. Strict: a key that is unknown, missing or
    of another shape raises CheckpointError with its name, before anything is read.
    """
    wanted = {component: flatten(tree) for component, tree in shapes.items()}
    for component, leaves in wanted.items():
        check_tensors(checkpoint, component, leaves)
    total = sum(len(leaves) for leaves in wanted.values())
    done = 0
    params = {}
    for component, leaves in wanted.items():
        placed: dict[str, jax.Array] = {}
        tensors = checkpoint.tensors[component]
        last: jax.Array | None = None
        # in the file's order, so that a disk reads straight through
        for key in sorted(leaves, key=lambda key: (tensors[key].file, tensors[key].offset)):
            tensor = tensors[key]
            dtype = np.dtype(leaves[key].dtype)
            what = f"{checkpoint.source_of(component)}: {component}: {tensor.key}"
            array = cast(what, tensor.read(), from_torch(key, tensor.shape), dtype)
            if last is not None:
                last.block_until_ready()  # at most two tensors wait on the host for their transfer
            last = placed[key] = place(component, key, array)
            done += 1
            if progress is not None:
                progress(done, total)
        params[component] = unflatten(placed)
    return jax.block_until_ready(params)


def cast(what: str, array: np.ndarray, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Do what `rearranged` does. Raises CheckpointError, naming `what`, for numbers beyond the range of the dtype."""
    try:
        with np.errstate(over="raise"):
            return rearranged(array, axes, dtype)
    except FloatingPointError as error:
        raise CheckpointError(f"{what} has numbers beyond the range of {dtype}") from error


def first_broken(params: Mapping[str, Any]) -> str | None:
    """Return the first parameter that holds NaN or infinity, as component and key; None if all are finite.

    The host looks, one part of one parameter at a time: the devices would compile a program for each shape.
    """
    leaves = {f"{component}: {key}": leaf for component, tree in params.items() for key, leaf in flatten(tree).items()}
    return next((name for name, leaf in leaves.items() if not all(map(_all_finite, _parts(jnp.asarray(leaf))))), None)


def _parts(leaf: jax.Array) -> list[jax.Array]:
    """Return what devices have of an array, once; with several hosts, each has every parameter."""
    if leaf.is_fully_replicated:
        return [leaf.addressable_data(0)]
    return [shard.data for shard in leaf.addressable_shards]


def _all_finite(part: jax.Array) -> bool:
    return bool(np.isfinite(np.asarray(part)).all())


def check_tensors(checkpoint: Checkpoint, component: str, wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a component has the leaves that are `wanted`, by key, and no others."""
    source, tensors = checkpoint.source_of(component), checkpoint.tensors[component]
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise CheckpointError(f"{source}: {component} lacks {_names(missing)}")
    ignored = IGNORED.fullmatch if component.startswith("text_encoder") else lambda key: False
    unknown = [key for key in tensors if key not in wanted and not ignored(key)]
    if unknown:
        raise CheckpointError(f"{source}: {component} has unknown tensors: {_names(unknown)}")
    for key, leaf in wanted.items():
        tensor = tensors[key]
        shape = tuple(tensor.shape[axis] for axis in from_torch(key, tensor.shape))
        if shape != leaf.shape:
            wanted_shape = torch_shape(key, leaf.shape)
            raise CheckpointError(
                f"{source}: {component}: {key} has shape {tensor.shape}, but its config asks for {wanted_shape}"
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating) and tensor.scale is None:
            raise CheckpointError(f"{source}: {component}: {key} holds {tensor.dtype}, not floating-point numbers")


def _names(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
