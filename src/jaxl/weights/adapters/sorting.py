"""The keys of an adapter's file, sorted by the layers of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxl.weights.adapters.names import Layer
from jaxl.weights.adapters.parts import ON_INPUT, WEIGHT, split_key

# textual inversions that came with the adapter, one file for both
EMBEDDING = re.compile(r"bundle_emb\.(.+)\.(clip_[lg])")


@dataclass(frozen=True)
class SortedKeys:
    """The keys of a file: for each layer by part, for each bundled embedding by encoder, and those of neither.

    `twice` is a pair of keys that are the same part of one layer, or a part of it under two names; None if none are.
    """

    layers: Mapping[Layer, Mapping[str, str]]
    embeddings: Mapping[str, Mapping[str, str]]
    unknown: tuple[str, ...]
    twice: tuple[str, str] | None


def sort_keys(keys: Iterable[str], names: Mapping[str, Layer]) -> SortedKeys:
    """Sort the keys of a file; `names` are a model's layers by their spellings."""
    keys = list(keys)
    scaled = {key.removesuffix(ON_INPUT) for key in keys if key.endswith(ON_INPUT)}
    layers: dict[Layer, dict[str, str]] = {}
    stems: dict[Layer, tuple[str, str]] = {}
    embeddings: dict[str, dict[str, str]] = {}
    unknown, twice = [], None
    for key in keys:
        if match := EMBEDDING.fullmatch(key):
            embeddings.setdefault(match[1], {})[match[2]] = key
            continue
        if key.endswith(WEIGHT) and key.removesuffix(WEIGHT) in scaled:
            stem, part = key.removesuffix(WEIGHT), "weight"
        else:
            stem, part = split_key(key) or ("", "")
        layer = names.get(stem.replace(".", "_"))
        if layer is None:
            unknown.append(key)
            continue
        named, first = stems.setdefault(layer, (stem, key))
        parts = layers.setdefault(layer, {})
        if named != stem or part in parts:
            twice = twice or (parts.get(part, first), key)
        parts.setdefault(part, key)
    return SortedKeys(layers, embeddings, tuple(unknown), twice)
