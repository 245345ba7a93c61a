"""Files of LoRAs with random numbers, for a model at hand."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxl.run.adapters import layers
from jaxl.weights.layout import to_torch

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def write_lora(file: Path, model: Any, seed: int, rank: int, networks: tuple[str, ...] = tuple(PREFIXES)) -> None:
    """Write a file with random numbers, under the names that sd-scripts gives to diffusers' modules."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for network in networks:
        for path, shape in layers(model, network).items():
            outputs, inputs, *window = (shape[axis] for axis in to_torch(f"{path}.weight", shape))
            name = f"{PREFIXES[network]}_{path.replace('.', '_')}"
            down = rng.standard_normal((rank, inputs, *window)) / np.sqrt(np.prod([inputs, *window]))
            tensors[f"{name}.lora_down.weight"] = down.astype(np.float16)
            up = rng.standard_normal((outputs, rank, *(1 for _ in window))) / np.sqrt(rank)
            tensors[f"{name}.lora_up.weight"] = up.astype(np.float16)
            tensors[f"{name}.alpha"] = np.array(rank / 2, np.float16)
    new = file.with_suffix(".new")
    save_file(tensors, new, {"modelspec.trigger_phrase": file.stem})
    os.replace(new, file)
