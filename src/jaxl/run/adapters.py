"""What adapters add to the layers of networks: the room that programs have for it, and the arrays that fill it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from jaxl.nn.layer_kinds import DOWN, SCALE_IN, SCALE_OUT, UP
from jaxl.nn.layers import Params
from jaxl.run.model import Model
from jaxl.run.target import Target
from jaxl.weights.adapters.combined import AdapterSet, in_threads, run_time
from jaxl.weights.adapters.form import Form
from jaxl.weights.layout import EMBEDDINGS, filled, flatten, placed, unflatten

# the least columns that there is room for, where any are needed; larger rooms have twice as many, and so on
LEAST_RANK = 8
# layers that most adapters change: all others, convolutions and embeddings, have a rank of their own
USUAL = re.compile(r"(.*\.)?attentions\..*|text_.*")
OF_TEXT = re.compile(r".+\.attn2\.to_[kv]")


@dataclass(frozen=True, order=True)
class Room:
    """How many columns adapters may have in a network: `rank` in transformers, `other_rank` in all other layers.

    With `scaled`, they may scale what goes into layers and what comes out as well.
    """

    rank: int = 0
    other_rank: int = 0
    scaled: bool = False

    def of(self, path: str) -> int:
        """Return the columns that the layer at a path has room for."""
        return self.rank if USUAL.fullmatch(path) else self.other_rank

    def covers(self, other: Room) -> bool:
        return all(getattr(self, field.name) >= getattr(other, field.name) for field in fields(Room))

    @classmethod
    def holding(cls, rooms: Iterable[Room]) -> Room:
        """Return a room that covers each of these."""
        each = [*rooms, cls()]
        return cls(*(max(getattr(room, field.name) for room in each) for field in fields(Room)))

    @property
    def rounded(self) -> Room:
        """The room of this or a larger size that programs are compiled for, so that there are few."""
        scaled = self.scaled and bool(self.rank or self.other_rank)
        return Room(rounded(self.rank), rounded(self.other_rank), scaled)


NO_ROOM = Room()


def rounded(rank: int) -> int:
    """Return the next power of two, of LEAST_RANK or more; 0 for 0."""
    return max(LEAST_RANK, 1 << (rank - 1).bit_length()) if rank else 0


def room_for(adapters: AdapterSet, component: str) -> Room:
    """Return what adapters need together in a network."""
    ranks = {True: 0, False: 0}
    scaled = False
    for path, changes in run_time(adapters, component).items():
        usual = USUAL.fullmatch(path) is not None
        rank = sum(change.rank for change, _ in changes)
        scaled |= any(change.scales for change, _ in changes)
        # a layer that is only scaled has a column too, of zeros, as only those with columns are changed
        ranks[usual] = max(ranks[usual], rank, 1)
    return Room(ranks[True], ranks[False], scaled)


def at_each_text(path: str) -> bool:
    """Return whether a layer of the U-Net is run once for a text, not in each row: see `unet_context`."""
    return OF_TEXT.fullmatch(path) is not None


def at_each_row(path: str) -> bool:
    return not at_each_text(path)


def adapter_shapes(
    to: Target, component: str, room: Room, among: Callable[[str], bool] = bool, images: int = 1
) -> Params | None:
    """Return the shapes of what adapters add to the layers of a component `among` those with room; None without room.

    For each layer with a weight [I, O], or [h, w, I, O]: `DOWN` [N, I, R] or [N, I, h, w, R], `UP` [N, R, O], and in
    `scaled` rooms `SCALE_IN` [N, I] and `SCALE_OUT` [N, O], as `nn.layer_kinds.Adapted` takes them. The U-Net's are
    split by images, like what they are added to.
    """
    dtype = _dtype(to, component)
    place = to.split if component == "unet" else to.whole
    leaves = {}
    for path, shape in layers(to.model, component).items():
        rank = room.of(path)
        if rank and among(path):
            *window, inputs, outputs = shape
            leaves[f"{path}.{DOWN}"] = place((images, inputs, *window, rank), dtype)
            leaves[f"{path}.{UP}"] = place((images, rank, outputs), dtype)
            if room.scaled:
                leaves[f"{path}.{SCALE_IN}"] = place((images, inputs), dtype)
                leaves[f"{path}.{SCALE_OUT}"] = place((images, outputs), dtype)
    return unflatten(leaves) if leaves else None


def adapter_arrays(shapes: Params | None, forms: Sequence[Mapping[str, Form]]) -> Params | None:
    """Return the arrays of these shapes for N images, each with the forms of its layers by path, on the devices."""
    if shapes is None:
        return None

    def made(key: str, leaf: Any) -> Any:
        path, _, name = key.rpartition(".")
        parts = [_part(each[path], name) if path in each else None for each in forms]
        value = 1.0 if name in (SCALE_IN, SCALE_OUT) else 0.0
        if all(part is None for part in parts):
            return neutral(leaf.shape, leaf.dtype, leaf.sharding, value)
        array = filled(leaf.shape, leaf.dtype, value)
        integers = array.view(f"u{array.itemsize}")  # which NumPy moves several times faster than 16-bit floats
        for image, part in zip(integers, parts, strict=True):
            if part is not None:
                image[tuple(slice(size) for size in part.shape)] = part.astype(leaf.dtype).view(integers.dtype)
        return placed(array, leaf.sharding)

    @cache
    def neutral(shape: tuple[int, ...], dtype: Any, sharding: Any, value: float) -> Any:
        """One array for all layers of a shape that no image changes."""
        return placed(filled(shape, dtype, value), sharding)

    return unflatten(in_threads(made, flatten(shapes)))


def _part(form: Form, name: str) -> np.ndarray | None:
    """Return a part of a form in the devices' layout."""
    if name == DOWN:
        return np.moveaxis(form.down, 0, -1)
    return {UP: form.up.T, SCALE_IN: form.scale_in, SCALE_OUT: form.scale_out}[name]


def _dtype(to: Target, component: str) -> Any:
    """Return the dtype that a component computes in, which no quantised layer has."""
    tree = to.shapes[component]
    first = tree["conv_in"] if component == "unet" else tree["text_model"]["embeddings"]["token_embedding"]
    return first["weight"].dtype


@cache
def layers(model: Model, component: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that adapters may add to, by path: of linear layers and convolutions."""
    leaves = flatten(model.shapes()[component])
    return {
        key.removesuffix(".weight"): leaf.shape
        for key, leaf in leaves.items()
        if key.endswith(".weight") and leaf.ndim > 1 and not key.endswith(EMBEDDINGS)
    }
