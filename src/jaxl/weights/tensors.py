"""A file's tensors as their networks know them, without the additions of the program that wrote it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxl.errors import CheckpointError
from jaxl.weights.store import DTYPES, Tensor, read_header, read_metadata

COMPILED = "_orig_mod."  # torch.compile puts it before the names of what it compiled

# The scale beside a weight in eight bits: one number, or one for each row, that multiplies it. The first is ComfyUI's
# older name, the second that of ComfyUI, vLLM and others.
SCALES = ("scale_weight", "weight_scale")
# the scales of inputs, for chips that multiply in eight bits, and ComfyUI's older mark of such files
UNUSED = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale)")

# ComfyUI's newer marks say how a layer is stored, each in JSON (its QUANTIZATION.md): a tensor of bytes beside the
# weight, or a table of all layers in the file's metadata. These are the formats of one scale, or one for each row.
MARK, TABLE = ".comfy_quant", "_quantization_metadata"
FORMATS: Mapping[str, np.dtype] = {
    "float8_e4m3fn": DTYPES["F8_E4M3"],
    "float8_e5m2": DTYPES["F8_E5M2"],
    "int8_tensorwise": DTYPES["I8"],
}
MAX_MARK_BYTES = 2**16
PREFIXES = ("", "model.diffusion_model.")  # of a file's names, beside those of its table


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, unread: each with its scale, and without the marks of other programs.

    Raises CheckpointError as `read_header` does, for a name that two tensors share, for a scale without a weight, and
    for a layer that is marked as stored in a way that jaxl does not read.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in read_header(file).items():
        put(tensors, key.replace(COMPILED, ""), tensor)
    return _with_scales(_as_marked(file, tensors))


def stored_as(tensor: Tensor) -> str:
    """Return the dtype that a tensor is stored in, and say whether a scale stands beside it."""
    return tensor.dtype.name if tensor.scale is None else f"{tensor.dtype.name} with scales"


def put(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Add a tensor. Raises CheckpointError if the name is taken: one of the two would win silently."""
    if name in tensors:
        raise CheckpointError(f"{tensor.file}: {tensors[name].key} and {tensor.key} are the same tensor, {name}")
    tensors[name] = tensor


def with_outer_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a text encoder's tensors in published names: transformers 5 leaves the first part of a name out."""
    if any(key.startswith("text_model.") for key in tensors):
        return dict(tensors)
    return {key if key.startswith("text_projection.") else f"text_model.{key}": t for key, t in tensors.items()}


def _as_marked(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without ComfyUI's newer marks, the numbers of each weight as its mark says."""
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith(MARK)}
    for layer, mark in _marks(file, tensors).items():
        name = mark.get("format")
        if not isinstance(name, str) or name not in FORMATS or mark.get("convrot"):
            how = f"{name} with its inputs rotated (ConvRot)" if mark.get("convrot") else name
            remedy = f"which jaxl does not read; get the model in {', '.join(FORMATS)} or float16"
            raise CheckpointError(f"{file}: {layer} is stored as {how}, {remedy}")
        dtype, names = FORMATS[name], [f"{prefix}{layer}.weight" for prefix in PREFIXES]
        key = next((key for key in names if key in kept), None)
        if key is None:
            raise CheckpointError(f"{file}: {names[0]}, which is marked as {name}, is not there")
        weight = kept[key]
        if weight.dtype not in (dtype, np.uint8):  # older files have the numbers as plain bytes
            raise CheckpointError(f"{file}: {key} is marked as {name}, but holds {weight.dtype}")
        kept[key] = dataclasses.replace(weight, dtype=dtype)
    return kept


def _marks(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Mapping[str, Any]]:
    """Return what the marks say of layers, by the layer's name. Raises CheckpointError for a damaged one."""
    table = read_metadata(file).get(TABLE)
    marks = {} if table is None else _parsed(file, TABLE, table.encode()).get("layers")
    if not isinstance(marks, dict) or not all(isinstance(mark, dict) for mark in marks.values()):
        raise CheckpointError(f"{file}: {TABLE} is damaged, it has no table of layers; get the file again")
    for key, tensor in tensors.items():
        if key.endswith(MARK):
            if tensor.dtype != np.uint8 or tensor.size > MAX_MARK_BYTES:
                raise CheckpointError(f"{file}: {tensor.key} is damaged, it is no text in JSON; get the file again")
            marks[key.removesuffix(MARK)] = _parsed(file, tensor.key, tensor.read().tobytes())
    return marks


def _parsed(file: Path, key: str, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: {key} is damaged, it is no text in JSON; get the file again") from error
    return found if isinstance(found, dict) else {}


def _with_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scales = {key: tensor for key, tensor in tensors.items() if key.endswith(tuple(f".{name}" for name in SCALES))}
    kept = {key: tensor for key, tensor in tensors.items() if key not in scales and not UNUSED.fullmatch(key)}
    for key, scale in scales.items():
        name = f"{key.rpartition('.')[0]}.weight"
        if name not in kept:
            raise CheckpointError(f"{scale.file}: {scale.key} is to scale {name}, which is not there")
        try:
            kept[name] = kept[name].scaled(scale)
        except ValueError as error:
            raise CheckpointError(f"{scale.file}: {scale.key} does not fit its weight: {error}") from error
    return kept
