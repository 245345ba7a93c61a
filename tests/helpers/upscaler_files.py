"""Upscalers with weights of no use, as files of several kinds: the names and shapes come from tests/golden."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "upscalers.npz"
Shapes = Mapping[str, tuple[int, ...]]


def golden(case: str) -> tuple[Shapes, np.ndarray, np.ndarray]:
    """Return a case of tools/upscaler_golden.py: its shapes by name, a picture, and what spandrel made of it."""
    with np.load(GOLDEN) as found:
        shapes = {key: tuple(shape) for key, shape in json.loads(str(found[f"{case}.shapes"])).items()}
        return shapes, found[f"{case}.picture"], found[f"{case}.made"]


def weights_of(shapes: Shapes) -> dict[str, np.ndarray]:
    """Return weights for these names and shapes, each of its own seed, so that no layer's output dies or explodes."""
    made = {}
    for key, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
        if key.endswith("running_var"):
            made[key] = 0.5 + np.abs(noise)
        elif key.endswith("weight") and len(shape) > 1:
            made[key] = noise / np.sqrt(np.prod(shape[1:])).astype(np.float32)
        else:
            made[key] = (1.0 if key.endswith(("weight", "temperature")) else 0.0) + np.float32(0.1) * noise
    return {key: np.asarray(array, np.float32) for key, array in made.items()}


def saved(file: Path, weights: Mapping[str, np.ndarray], outer: str | None = None) -> Path:
    """Write a file of torch.save or of safetensors, as its name says; `outer` is the dictionary around the weights."""
    if file.suffix == ".safetensors":
        save_file({f"{outer}.{key}" if outer else key: array for key, array in weights.items()}, file)
    else:
        tensors = {key: torch.from_numpy(array) for key, array in weights.items()}
        torch.save({outer: tensors, "iter": 5} if outer else tensors, file)
    return file
