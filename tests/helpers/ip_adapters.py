"""IP-Adapters with random weights for a small model, and an image encoder, in the layout that is published."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from torch_weights import randomize

from jaxl.config import UNetConfig

ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 20,
    "hidden_act": "gelu",
}


@cache
def image_encoder() -> Any:
    """A small encoder of transformers, always the same."""
    config = transformers.CLIPVisionConfig(**ENCODER)  # pyright: ignore[reportArgumentType]
    return randomize(transformers.CLIPVisionModelWithProjection(config), seed=1)


def widths(unet: UNetConfig) -> list[int]:
    """The width of each layer of cross-attention on the way down, up, and in the middle."""
    up = [unet.channels[-1 - i] for i in range(len(unet.up))]
    blocks = [*zip(unet.down, unet.channels, strict=True), *zip(unet.up, up, strict=True)]
    return [width for depths, width in [*blocks, (unet.mid or (), unet.channels[-1])] for _ in range(sum(depths))]


def tensors(unet: UNetConfig, seed: int, *, plus: bool = False, tokens: int = 4) -> dict[str, np.ndarray]:
    """A whole file's."""
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        scale = np.sqrt(shape[-1]) if len(shape) > 1 else 4.0
        return (rng.standard_normal(shape) / scale + (len(shape) == 1)).astype(np.float32)

    def norm(name: str, width: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": random(width), f"{name}.bias": random(width) - 1}

    def linear(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs) - 1}

    width, cross, hidden = 128, unet.cross_attention_dim, ENCODER["hidden_size"]
    if plus:
        projection = {"latents": random(1, tokens, width)}
        projection |= linear("proj_in", hidden, width) | linear("proj_out", width, cross) | norm("norm_out", cross)
        for i in range(4):  # as diffusers takes it to be
            at = f"layers.{i}"
            projection |= norm(f"{at}.0.norm1", width) | norm(f"{at}.0.norm2", width) | norm(f"{at}.1.0", width)
            projection |= {
                f"{at}.0.to_q.weight": random(width, width),
                f"{at}.0.to_kv.weight": random(2 * width, width),
                f"{at}.0.to_out.weight": random(width, width),
                f"{at}.1.1.weight": random(4 * width, width),
                f"{at}.1.3.weight": random(width, 4 * width),
            }
    else:
        projection = linear("proj", ENCODER["projection_dim"], tokens * cross) | norm("norm", cross)
    layers = {
        f"ip_adapter.{2 * n + 1}.{name}_ip.weight": random(own, cross)
        for n, own in enumerate(widths(unet))
        for name in ("to_k", "to_v")
    }
    return {f"image_proj.{name}": tensor for name, tensor in projection.items()} | layers


def nested(flat: dict[str, np.ndarray]) -> dict[str, dict[str, torch.Tensor]]:
    """As diffusers takes a state dict."""
    found: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in flat.items():
        part, _, name = key.partition(".")
        found[part][name] = torch.from_numpy(tensor)
    return found


def write(folder: Path, unet: UNetConfig) -> dict[str, Path]:
    """A plain one and a Plus, beside their encoder."""
    image_encoder().save_pretrained(folder / "image_encoder")
    files = {"plain": folder / "plain.safetensors", "plus": folder / "plus.safetensors"}
    for seed, (name, file) in enumerate(files.items()):
        save_file(tensors(unet, seed, plus=name == "plus", tokens=4 + 2 * seed), file)
    return files
