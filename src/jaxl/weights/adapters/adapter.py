"""An adapter read from its file: what it changes in each network of a model, and what its metadata says."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxl.errors import CheckpointError
from jaxl.weights.adapters.changes import Change
from jaxl.weights.adapters.description import Description
from jaxl.weights.adapters.families import foreign
from jaxl.weights.adapters.kinds import changes_of
from jaxl.weights.adapters.names import Layer, layers, spellings
from jaxl.weights.adapters.parts import MisfitError, Parts, split_key
from jaxl.weights.adapters.peft import PeftSettings, read_peft
from jaxl.weights.adapters.sorting import SortedKeys, sort_keys
from jaxl.weights.kinds import kind as kind_of_file
from jaxl.weights.store import Tensor, read_metadata
from jaxl.weights.tensors import read_tensors

Array = np.ndarray

DIGITS = 12
# the bits of the exponent
EXPONENTS: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}
# the encoder that each part of an embedding is for, and the layer that tells its width
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
TOKENS = "text_model.embeddings.token_embedding"
LENIENT = "pass `strict=False` to leave such tensors out"


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a file of adapters, of whatever kind, does to a model.

    `changes` are by network and by the key of the parameter in a diffusers checkpoint. `embeddings` are textual
    inversions that came with it, by name: vectors for `clip_l` and `clip_g`. `left` are the keys that were left out.
    `source` is what the user named, and `file` the name of the file that this meant. `digest` is how AUTOMATIC1111's
    web UI names the file in `Lora hashes`. Arrays have the file's dtypes.
    """

    name: str
    source: str
    digest: str
    changes: Mapping[str, Mapping[str, Change]]
    embeddings: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    nbytes: int = 0
    file: str = ""

    @cached_property
    def identity(self) -> str:
        """What no other adapter has: the digest is of the tensors' bytes alone, and the header says what they mean."""
        header = repr((sorted(self.metadata.items()), self.left, {name: [*own] for name, own in self.changes.items()}))
        return f"{self.digest}-{hashlib.sha256(header.encode()).hexdigest()[:DIGITS]}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its changes, the most frequent first."""
        every = [change.kind for changes in self.changes.values() for change in changes.values()]
        return tuple(sorted(dict.fromkeys(every), key=lambda kind: -every.count(kind)))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that its layers have, ascending."""
        dims = {change.dim for changes in self.changes.values() for change in changes.values()}
        return tuple(sorted(dim for dim in dims if dim is not None))

    @property
    def description(self) -> Description:
        return Description((self.source, self.file), self.metadata)

    @property
    def distilled(self) -> str | None:
        """The method by which it makes a model draw in few steps, such as "lcm"; None if it is no such adapter."""
        return self.description.distilled

    @property
    def trigger_words(self) -> tuple[str, ...]:
        return self.description.trigger_words

    @property
    def base_model(self) -> str | None:
        return self.description.base_model


def read_adapter(
    name: str,
    file: Path,
    shapes: Mapping[str, Mapping[str, Any]],
    *,
    strict: bool = True,
    lenient: str = LENIENT,
    source: str | None = None,
) -> Adapter:
    """Read a `.safetensors` file of adapters for a model with these `shapes`, which are `Model.shapes()`.

    Tensors are copied: the file may change or go afterwards. `source` is what the user named, for messages, the file if
    None. `strict=False` leaves out what belongs to no layer of the model or does not fit it, as long as something does;
    `lenient` is what errors say of that. Raises CheckpointError, in one line, for a file of something else, for another
    family of models, and for tensors that are damaged, too many or too few.
    """
    source = source or str(file)
    tensors, metadata = read_tensors(file), read_metadata(file)
    known = layers(shapes)
    _refuse_others(source, tensors, known)
    keys = sort_keys(tensors, spellings(known))
    if keys.twice:
        raise CheckpointError(f"{source}: {' and '.join(keys.twice)} are for one layer, of which one would be lost")
    if not keys.layers:
        raise CheckpointError(
            f"{source}: none of its {len(tensors)} tensors is for a layer of this model: "
            f"{_some(tensors)}; give a LoRA for SDXL"
        )
    unknown = set(keys.unknown)
    with ThreadPoolExecutor(1) as beside:  # neither the digest nor copying holds Python's lock
        digest = beside.submit(_digest, file)
        arrays = {key: _read(source, tensor) for key, tensor in tensors.items() if key not in unknown}
    changes, misfits = _changes(keys, arrays, read_peft(file, metadata), Description((source, file.name), metadata))
    left = (*keys.unknown, *(key for misfit in misfits for key in misfit.keys))
    if strict and misfits:
        raise CheckpointError(f"{source}: {misfits[0].reason}{_more(len(misfits) - 1, 'layer')}; {lenient}")
    if strict and left:
        share = f"{len(left)} of its {len(tensors)} tensors"
        raise CheckpointError(f"{source}: {share} are for no layer of this model: {_some(left)}; {lenient}")
    for embedding, vectors in keys.embeddings.items():
        _check_widths(source, embedding, {encoder: arrays[key].shape for encoder, key in vectors.items()}, known)
    if not changes:
        raise CheckpointError(f"{source}: {misfits[0].reason}; nothing else is in it")
    return Adapter(
        name,
        source,
        digest.result(),
        changes,
        {name: {encoder: arrays[key] for encoder, key in each.items()} for name, each in keys.embeddings.items()},
        metadata,
        left,
        sum(array.nbytes for array in arrays.values()),
        file.name,
    )


def is_adapter(keys: Iterable[str]) -> bool:
    """Return whether a file with these keys holds adapters of some kind, for whatever model."""
    return any(split_key(key) is not None for key in keys)


@dataclass(frozen=True)
class _Misfit:
    """Tensors that are no change of the layer they are for, with the reason."""

    reason: str
    keys: tuple[str, ...]


def _refuse_others(source: str, tensors: Mapping[str, Tensor], known: Sequence[Layer]) -> None:
    """Raise CheckpointError, saying what the file is, if it is not an adapter of such a model."""
    if not is_adapter(tensors):
        raise CheckpointError(f"{source}: not a LoRA but {kind_of_file(tensors)}")
    found = foreign(tensors, known)
    if found is not None:
        raise CheckpointError(f"{source}: not a LoRA for this model but {found}")


def _changes(
    keys: SortedKeys, arrays: Mapping[str, Array], peft: Mapping[str, PeftSettings], description: Description
) -> tuple[dict[str, dict[str, Change]], list[_Misfit]]:
    """Return the changes by network and parameter, and the layers whose tensors are none."""
    changes: dict[str, dict[str, Change]] = {}
    misfits = []
    for layer, parts in keys.layers.items():
        said = peft.get(layer.component, PeftSettings())
        try:
            found = changes_of(
                layer,
                Parts(
                    layer.weight,
                    {part: arrays[key] for part, key in parts.items()},
                    parts,
                    said.alpha_of(layer.module),
                    said.rooted or ("a1" in parts and description.rooted_glora),
                ),
            )
        except MisfitError as error:
            misfits.append(_Misfit(str(error), tuple(parts.values())))
        else:
            changes.setdefault(layer.component, {}).update(found)
    return changes, misfits


def _check_widths(source: str, name: str, shapes: Mapping[str, tuple[int, ...]], known: Sequence[Layer]) -> None:
    """Raise CheckpointError unless the vectors of an embedding are as wide as the model's text encoders."""
    for encoder, component in ENCODERS.items():
        width = next((layer.weight[1] for layer in known if layer.component == component and layer.module == TOKENS), 0)
        if encoder in shapes and (len(shapes[encoder]) != 2 or shapes[encoder][1] != width):
            raise CheckpointError(
                f"{source}: the embedding {name!r} has {encoder} {shapes[encoder]}, but {component} is {width} wide"
            )


def _read(source: str, tensor: Tensor) -> Array:
    """Return a copy of a tensor. Raises CheckpointError if it holds NaN or infinity."""
    if tensor.dtype.kind in "biu" and tensor.scale is None and tensor.size > 1:
        raise CheckpointError(f"{source}: {tensor.key} holds {tensor.dtype}, not floating-point numbers")
    array = np.array(tensor.read())
    if not _is_finite(array):
        raise CheckpointError(f"{source}: {tensor.key} holds NaN or infinity: the file is damaged, or its training was")
    return array


def _is_finite(array: Array) -> bool:
    exponent = EXPONENTS.get(array.dtype.name)
    if exponent is None:
        return array.dtype.kind in "biu" or bool(np.isfinite(array).all())
    # a number whose exponent is all ones is none; NumPy looks at integers several times faster
    return not ((array.view(np.uint16) & exponent) == exponent).any()


def _digest(file: Path) -> str:
    """Return the first digits of the SHA-256 of all that follows the header."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            stream.seek(8 + length)
            while block := stream.read(2**20):
                digest.update(block)
    except (OSError, struct.error) as error:  # it went while it was read
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    return digest.hexdigest()[:DIGITS]


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _more(count: int, what: str) -> str:
    return f", and {count} more {what}{'s' if count > 1 else ''}" if count else ""
