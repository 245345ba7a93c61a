"""The kinds of adapters: which tensors each has for a layer, and the changes that these are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jaxl.weights.adapters.changes import Added, Addition, Change, Replaced, Scaled
from jaxl.weights.adapters.decomposed import Decomposed
from jaxl.weights.adapters.low_rank import GLoRA, LowRank
from jaxl.weights.adapters.names import Layer
from jaxl.weights.adapters.parts import MisfitError, Parts
from jaxl.weights.adapters.products import HADAMARD, KRONECKER, read_hadamard, read_kronecker
from jaxl.weights.adapters.rotations import read_blocks, read_input_blocks, read_rotations

Array = np.ndarray

BIASES = ("diff_b", "b_norm")
MAGNITUDES = ("dora_scale", "magnitude")


@dataclass(frozen=True)
class Kind:
    """A kind of change of a weight: it is there if one of `marks` is, and may have `more` parts.

    `of_vectors` says that it may change a norm's vector too, rather than matrices and convolutions alone.
    """

    marks: frozenset[str]
    read: Callable[[Parts], Change]
    more: frozenset[str] = field(default_factory=frozenset)
    of_vectors: bool = False


def changes_of(layer: Layer, parts: Parts) -> dict[str, Change]:
    """Return the changes of a layer by the key of the parameter. Raises MisfitError for what cannot be one."""
    found: dict[str, Change] = {}
    used = {*BIASES, "alpha"}
    for kind in KINDS:
        if not kind.marks.isdisjoint(parts.arrays):
            if found:
                raise MisfitError(f"two kinds of adapters for one layer: {', '.join(parts.keys.values())}")
            if len(parts.shape) < 2 and not kind.of_vectors:
                raise MisfitError(f"{', '.join(parts.keys.values())}: the layer has no matrix, only a vector")
            used |= kind.marks | kind.more
            found[f"{layer.module}.weight"] = _decomposed(parts, kind.read(parts))
    biases = [_bias(layer, parts, part) for part in (*BIASES, "up_bias") if part in parts]
    if len(biases) > 1:
        raise MisfitError(f"two changes of one bias: {', '.join(parts.keys.values())}")
    unknown = [key for part, key in parts.keys.items() if part not in used]
    if unknown or not (found or biases):
        raise MisfitError(f"{', '.join(unknown or parts.keys.values())}: of no kind that jaxl knows")
    return found | {f"{layer.module}.bias": bias for bias in biases}


def _bias(layer: Layer, parts: Parts, part: str) -> Added:
    if layer.bias is None:
        raise MisfitError(f"{parts.keys[part]} is for a bias, which the layer does not have")
    scale = parts.scale(parts.rank("down")) if part == "up_bias" else 1.0
    return Added(parts.fitted(part, *layer.bias), scale)


def _decomposed(parts: Parts, change: Change) -> Change:
    """Return the change with its magnitudes, if it has some: DoRA."""
    part = next((name for name in MAGNITUDES if name in parts), None)
    if part is None:
        return change
    if not isinstance(change, Addition) or len(parts.shape) < 2:
        raise MisfitError(f"{parts.keys[part]} does not go with {change.kind}")
    return Decomposed(change, parts[part].reshape(-1), _axis(parts, part))


def _axis(parts: Parts, part: str) -> int:
    """Return the axis along which magnitudes lie, by the place of the 1 in their shape. PEFT's are of the outputs."""
    shape, (outputs, inputs) = parts[part].shape, (*parts.shape, 0)[:2]
    if part == "magnitude":
        parts.fitted(part, outputs)
        return 0
    if len(shape) == 1 and outputs != inputs:
        fits = [axis for axis in (0, 1) if shape == (parts.shape[axis],)]
    else:
        fits = [axis for axis in (0, 1) if shape[:2] == ((outputs, 1), (1, inputs))[axis]]
    if not fits or any(size != 1 for size in shape[2:]):
        wanted = f"({outputs}, 1) or (1, {inputs})"
        raise MisfitError(f"{parts.keys[part]} has shape {shape}, not {wanted}")
    return fits[0]


def _read_low_rank(parts: Parts) -> LowRank:
    rank = parts.rank("down")
    up = parts.fitted("up", parts.shape[0], rank)
    if "mid" in parts:
        mid = parts.core("mid", rank)
        return LowRank(parts.fitted("down", rank, parts.shape[1]), up, parts.scale(rank), mid)
    return LowRank(_padded(parts, "down", rank), up, parts.scale(rank))


def _padded(parts: Parts, part: str, first: int) -> Array:
    """Return a part [first, in, ...], with zeros for inputs that only an inpainting model has.

    Adapters of other models know 4 of the 9 channels of its first convolution.
    """
    inputs, *kernel = parts.shape[1:]
    array = parts[part]
    if kernel and inputs == 9 and array.shape == (first, 4, *kernel):
        return np.concatenate([array, np.zeros((first, 5, *kernel), array.dtype)], axis=1)
    return parts.fitted(part, first, inputs, *kernel)


def _read_glora(parts: Parts) -> GLoRA:
    """Read GLoRA in the order of LyCORIS today, or in the older one, which only matrices have: shapes tell."""
    outputs, inputs, *kernel = parts.shape
    columns = inputs * (1 if "bm" in parts else math.prod(kernel))
    for names in (("a1", "a2", "b1", "b2"), ("a2", "a1", "b2", "b1")):
        first, second, up, down = (parts.matrix(name) for name in names)
        mixing, rank = parts.rank(names[1]), parts.rank(names[3])
        fits = first.shape == (inputs, mixing) and second.shape == (mixing, inputs)
        if fits and up.shape == (outputs, rank) and down.shape == (rank, columns):
            if "bm" in parts:
                core = parts.core("bm", rank).astype(np.float32)
                down = np.einsum("mnkl,nj->mjkl", core, down.astype(np.float32))
            return GLoRA(first, second, up, down.reshape(rank, inputs, *kernel), parts.scale(rank))
    shapes = ", ".join(f"{parts.keys[name]} {parts[name].shape}" for name in ("a1", "a2", "b1", "b2"))
    raise MisfitError(f"{shapes} are not for a weight of {parts.shape}")


def _read_scaled(parts: Parts) -> Scaled:
    axis = 1 if parts.number("on_input") else 0
    return Scaled(parts.fitted("weight", parts.shape[axis]), axis)


def _read_difference(part: str) -> Callable[[Parts], Added]:
    return lambda parts: Added(
        _padded(parts, part, parts.shape[0]) if len(parts.shape) > 1 else parts.fitted(part, *parts.shape)
    )


def _of(*parts: str) -> frozenset[str]:
    return frozenset(parts)


SCALES = _of("alpha", "scale")
DORA = SCALES | _of(*MAGNITUDES)
KINDS: tuple[Kind, ...] = (
    Kind(_of("down", "up"), _read_low_rank, _of("mid", "up_bias") | DORA),
    Kind(_of("a1", "a2", "b1", "b2"), _read_glora, _of("bm") | SCALES),
    Kind(_of("on_input"), _read_scaled, _of("weight")),
    Kind(HADAMARD, read_hadamard, DORA),
    Kind(KRONECKER, read_kronecker, DORA),
    Kind(_of("diff"), _read_difference("diff"), _of(*MAGNITUDES), of_vectors=True),
    Kind(_of("w_norm"), _read_difference("w_norm"), of_vectors=True),
    Kind(_of("set_weight"), lambda parts: Replaced(parts.fitted("set_weight", *parts.shape)), of_vectors=True),
    Kind(_of("oft_blocks"), read_blocks, _of("rescale") | SCALES),
    Kind(_of("oft_diag"), read_rotations, _of("rescale") | SCALES),
    Kind(_of("oft_r"), read_input_blocks, _of("scaled_oft") | SCALES),
)
