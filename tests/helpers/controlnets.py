"""ControlNets and their kin with random weights for a small model, in the layouts that are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxl.config import ControlNetConfig, LLLiteConfig, LLLiteModule, T2IAdapterConfig
from jaxl.nn.controlnet import controlnet_shapes
from jaxl.nn.layers import Shapes
from jaxl.nn.lllite import lllite_shapes
from jaxl.nn.t2i_adapter import t2i_adapter_shapes
from jaxl.run.model import Model
from jaxl.weights.layout import flatten, to_torch
from jaxl.weights.original_unet import RESNET

EMBEDDING = (8, 8, 16, 16)


def tensors(model: Model, seed: int) -> dict[str, np.ndarray]:
    """A whole ControlNet's, in diffusers' names."""
    return random_tensors(controlnet_shapes(ControlNetConfig(model.unet, 3, EMBEDDING, False, False), np.float32), seed)


def random_tensors(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Those of a tree of parameters, in torch's layout."""
    rng = np.random.default_rng(seed)

    def weights(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 2.0
        return (rng.standard_normal(shape.shape) / np.sqrt(fan_in)).astype(np.float32)

    leaves = flatten(jax.tree.map(weights, shapes))
    return {key: np.ascontiguousarray(leaf.transpose(to_torch(key, leaf.shape))) for key, leaf in leaves.items()}


def write_t2i_adapter(file: Path, model: Model, seed: int) -> Path:
    """As a file in diffusers' names."""
    config = T2IAdapterConfig(3, model.unet.channels, 16, 2)
    save_file(random_tensors(t2i_adapter_shapes(config, np.float32), seed), file)
    return file


def lllite_modules(parts: Mapping[str, tuple[int, tuple[int, ...]]]) -> dict[str, LLLiteModule]:
    """Modules before every layer that they are for, by their names, in parts of a U-Net of widths and strides."""
    layers = [("attn1", f"to_{part}") for part in "qkv"] + [("attn2", "to_q")]
    names = {f"lllite_unet_{part}_transformer_blocks_0_{attn}_{to}": part for part in parts for attn, to in layers}
    return {name: LLLiteModule(name, "", parts[part][0], 8, 6, parts[part][1]) for name, part in names.items()}


def write_lllite(file: Path, model: Model, seed: int) -> Path:
    """For a U-Net of two levels, of which the second has one layer with a transformer."""
    width = model.unet.channels[1]
    modules = lllite_modules({"input_blocks_3_1": (width, (4, 4)), "middle_block_1": (width, (4, 4))})
    save_file(random_tensors(lllite_shapes(LLLiteConfig(tuple(modules.values())), np.float32), seed), file)
    return file


def write_folder(folder: Path, unet: dict[str, Any], model: Model, seed: int) -> Path:
    """As diffusers saves one; `unet` is the config of the model's."""
    of_unet = ("up_block_types", "out_channels", "sample_size")
    config = {name: value for name, value in unet.items() if name not in of_unet and not name.startswith("_")}
    config |= {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": list(EMBEDDING)}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(model, seed), folder / "diffusion_pytorch_model.safetensors")
    return folder


def in_original_names(own: dict[str, np.ndarray], model: Model) -> dict[str, np.ndarray]:
    """Written out here by counting, rather than by what reads them."""
    blocks: dict[str, str] = {}
    number = 1
    for i, depths in enumerate(model.unet.down):
        for j in range(len(depths)):
            blocks[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            blocks[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if i < len(model.unet.down) - 1:
            blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    blocks |= {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "controlnet_mid_block": "middle_block_out.0",
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
        **{f"controlnet_cond_embedding.blocks.{n}": f"input_hint_block.{2 * n + 2}" for n in range(6)},
        **{f"controlnet_down_blocks.{n}": f"zero_convs.{n}.0" for n in range(12)},
    }
    parts = {new: old for old, new in RESNET.items()}
    renamed = {}
    for key, tensor in own.items():
        block = next(name for name in sorted(blocks, key=len, reverse=True) if key.startswith(f"{name}."))
        rest, _, leaf = key.removeprefix(f"{block}.").rpartition(".")
        rest = parts.get(rest, rest) if ".resnets." in block else rest
        renamed[".".join(filter(None, ("control_model", blocks[block], rest, leaf)))] = tensor
    return renamed
