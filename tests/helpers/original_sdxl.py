"""Scaled-down SDXL models with random weights, and a writer of the original single-file layout.

The writer goes the other way than jaxl (diffusers names to original names) and shares nothing with it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import families
import torch
import transformers
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


def widened(raw: dict[str, Any], context: int) -> dict[str, Any]:
    """The family's U-Net with heads of 64 channels, as every published one has them and no shape tells."""
    channels = [64, 64, 128, 128][: len(raw["block_out_channels"])]
    return raw | {
        "block_out_channels": channels,
        "attention_head_dim": [width // 64 for width in channels],
        "cross_attention_dim": context,
        "projection_class_embeddings_input_dim": raw["projection_class_embeddings_input_dim"] - 24 + 96,
        "sample_size": 128,
    }


FAMILIES = {name: widened(raw, 128 if name == "refiner" else 192) for name, raw in families.FAMILIES.items()}
UNET = FAMILIES["base"]
VAE: dict[str, Any] = {
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "sample_size": 1024,
    "force_upcast": True,
}
CLIP_L: dict[str, Any] = {
    "vocab_size": 99,
    "max_position_embeddings": 77,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "hidden_act": "quick_gelu",
    "projection_dim": 64,
}
BIG_G: dict[str, Any] = CLIP_L | {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "projection_dim": 96,
}
IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def modules(unet: dict[str, Any]) -> dict[str, torch.nn.Module]:
    """The networks around a U-Net config, without memory for their weights."""
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel(**unet),
            "vae": diffusers.AutoencoderKL(**VAE),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L, **IDS)),
            "text_encoder_2": transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**BIG_G, **IDS)),
        }
    if len(unet["block_out_channels"]) == 4:  # the refiner
        del networks["text_encoder"]
    return networks


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """A network's published keys and shapes. transformers has lately dropped the first name of CLIPTextModel's keys."""
    prefix = "text_model." if isinstance(module, transformers.CLIPTextModel) else ""
    keys = {key if key.startswith(prefix) else prefix + key: value for key, value in module.state_dict().items()}
    return {key: tuple(value.shape) for key, value in keys.items() if not key.endswith("position_ids")}


def random_state(module: torch.nn.Module, seed: int) -> State:
    """Random float16 weights, no two tensors alike."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator).half() for key, shape in shapes(module).items()}


def original_unet(state: State, unet: dict[str, Any]) -> State:
    layers = unet["layers_per_block"]
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    inside = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    inside |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}

    def rename(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        if module in names:
            return f"{names[module]}.{leaf}"
        match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key)
        if match:
            way, level, kind, i, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            block = f"input_blocks.{1 + level * (layers + 1) + i}" if way == "down" else ""
            block = block or f"output_blocks.{level * (layers + 1) + i}"
            if kind == "downsamplers":
                return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{leaf}"
            if kind == "upsamplers":
                place = 2 if "CrossAttn" in unet["up_block_types"][level] else 1
                return f"output_blocks.{level * (layers + 1) + layers}.{place}.conv.{leaf}"
        else:
            match = re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", key)
            assert match, key
            block, kind, rest = "middle_block", match[1], match[3]
            if kind == "resnets":
                return f"{block}.{2 * int(match[2])}.{inside[rest.rpartition('.')[0]]}.{leaf}"
        return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{inside[rest.rpartition('.')[0]]}.{leaf}"

    return {rename(key): value for key, value in state.items()}


def original_vae(state: State) -> State:
    original = {}
    for key, value in state.items():
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{2 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{2 - int(m[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attentions" in new:
            new = new.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm.", "norm.")
            new = new.replace("to_out.0.", "proj_out.").replace("to_", "")
            value = value[:, :, None, None] if value.ndim == 2 else value
        original[new] = value
    return original


def original_openclip(state: State) -> State:
    original = {}
    for key, value in state.items():
        new = key.replace("text_model.encoder.layers.", "transformer.resblocks.").replace("self_attn.", "attn.")
        new = new.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
        new = new.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        new = new.replace("text_model.final_layer_norm", "ln_final").replace("text_model.embeddings.", "")
        new = new.replace("position_embedding.weight", "positional_embedding")
        if new == "text_projection.weight":
            original["text_projection"] = value.T.contiguous()
        elif ".q_proj." in new:
            stacked = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            original[new.replace("q_proj.", "in_proj_")] = torch.cat(stacked)
        elif not re.search(r"\.[kv]_proj\.", new):
            original[new] = value
    return original


def original(states: dict[str, State], unet: dict[str, Any]) -> State:
    """The whole model in the original layout."""
    encoder_2 = "conditioner.embedders.1.model." if "text_encoder" in states else "conditioner.embedders.0.model."
    tables = {
        "model.diffusion_model.": original_unet(states["unet"], unet),
        "first_stage_model.": original_vae(states["vae"]),
        "conditioner.embedders.0.transformer.": states.get("text_encoder", {}),
        encoder_2: original_openclip(states["text_encoder_2"]),
    }
    return {prefix + key: value for prefix, table in tables.items() for key, value in table.items()}


@dataclass(frozen=True)
class Model:
    """A random model: its networks without weights, its diffusers tensors, and what is in its file."""

    file: Path
    networks: dict[str, torch.nn.Module]
    states: dict[str, State]
    tensors: State


def write_model(file: Path, family: str) -> Model:
    networks = modules(FAMILIES[family])
    states = {name: random_state(module, seed) for seed, (name, module) in enumerate(networks.items())}
    tensors = original(states, FAMILIES[family])
    save_file(tensors, file)
    return Model(file, networks, states, tensors)
