"""Control-LoRAs: ControlNets whose weights are written as differences of low rank from those of the U-Net.

https://huggingface.co/stabilityai/control-lora; a weight is the U-Net's plus `up @ down`, with no further factor, and
what the file lacks is the U-Net's as it is (ComfyUI's `ControlLora`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxl.errors import CheckpointError
from jaxl.weights.store import Tensor
from jaxl.weights.tensors import put

MARK = "lora_controlnet"
UP, DOWN = ".up", ".down"


@dataclass(frozen=True, kw_only=True)
class Change(Tensor):
    """The difference of a weight from that of the U-Net or, with `base`, the weight. It lies where `up` does."""

    up: Tensor
    down: Tensor
    base: Tensor | None = None

    def read(self) -> np.ndarray:
        """Return it in float32."""
        up, down = (factor.read().astype(np.float32) for factor in (self.up, self.down))
        change = (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(self.shape)
        return change if self.base is None else self.base.read().astype(np.float32) + change


def changes(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors, each pair of factors as the change of a weight. Raises CheckpointError."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        stem = key.removesuffix(UP)
        if stem == key:
            if key != MARK and not (key.endswith(DOWN) and f"{key.removesuffix(DOWN)}{UP}" in tensors):
                put(found, key, tensor)
            continue
        down = tensors.get(f"{stem}{DOWN}")
        if down is None or len(down.shape) < 2 or tensor.size != tensor.shape[0] * down.shape[0]:
            raise CheckpointError(f"{file}: {tensor.key} has no {DOWN.removeprefix('.')} of the same rank beside it")
        shape = (tensor.shape[0], *down.shape[1:])
        change = Change(tensor.key, tensor.file, tensor.dtype, shape, tensor.offset, up=tensor, down=down)
        put(found, f"{stem}.weight", change)
    return found


def rebuilt(file: Path, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the ControlNet that changes make of a U-Net's, all of them by their diffusers keys."""
    found = dict(base)
    for key, tensor in tensors.items():
        found[key] = tensor
        if isinstance(tensor, Change):
            if key not in base or base[key].size != tensor.size:
                shape = base[key].shape if key in base else "missing"
                raise CheckpointError(f"{file}: made for another model: {tensor.key} is {tensor.shape}, here {shape}")
            found[key] = dataclasses.replace(tensor, shape=base[key].shape, base=base[key])
    return found
