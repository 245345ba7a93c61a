"""A file's tensors as their networks know them, without the additions of the program that wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxl.errors import CheckpointError
from jaxl.weights.store import Tensor, read_header

COMPILED = "_orig_mod."  # torch.compile puts it before the names of what it compiled

# The scale beside a weight in eight bits: one number, or one for each row, that multiplies it. The first is ComfyUI's
# older name, the second that of ComfyUI, vLLM and others.
SCALES = ("scale_weight", "weight_scale")
# the scales of inputs, for chips that multiply in eight bits, and ComfyUI's marks of such files and layers
UNUSED = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|comfy_quant)")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, unread: each with its scale, and without the marks of torch.compile.

    Raises CheckpointError as `read_header` does, for a name that two tensors share, and for a scale without a weight.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in read_header(file).items():
        put(tensors, key.replace(COMPILED, ""), tensor)
    return _with_scales(tensors)


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
