"""SDXL's autoencoder and text encoders in the layout they were published in: configs from shapes, and the names.

The layout is that of Stability AI's generative-models (`sgm`) and of OpenCLIP; the corresponding names in diffusers
and transformers are those of diffusers' `convert_diffusers_to_original_sdxl.py`. Keys come here without the prefix of
their network in a file. A network's structure is read off its keys and shapes, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxl.errors import CheckpointError

HEAD_WIDTH = 64  # in all attention of SDXL's U-Nets and text encoders; no shape tells it

TensorShapes = Mapping[str, tuple[int, ...]]
Names = dict[str, tuple[str, ...]]  # see Layout

VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
CLIP_LAYER = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"),
)
OPENCLIP_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_2": "layer_norm2",
}


@dataclass(frozen=True)
class Layout:
    """The layout of one network in a file: its config in diffusers or transformers, and the new names of its tensors.

    `names` maps every key that the network may have to its diffusers key, or to three of them where one tensor holds
    query, key and value below each other.
    """

    config: dict[str, Any]
    names: Names


def vae_layout(shapes: TensorShapes) -> Layout:
    """Return the autoencoder's layout; only widths and depths are read. Raises CheckpointError naming a missing key."""
    in_channels = shape(shapes, "encoder.conv_in.weight")[1]
    latent_channels = shape(shapes, "decoder.conv_in.weight")[1]
    levels, layers = count(shapes, "encoder.down"), count(shapes, "encoder.down.0.block")
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [shape(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": in_channels,
        "latent_channels": latent_channels,
        "layers_per_block": layers,
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
        "norm_num_groups": 32,
        "out_channels": shape(shapes, "decoder.conv_out.weight")[0],
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
    }
    return Layout(config, vae_names(levels, layers))


def vae_names(levels: int, layers: int) -> Names:
    """Return the names of an autoencoder of so many levels, with so many residual blocks on each level's way down."""
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        modules |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        modules[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for level in range(levels):
            # the decoder's levels are numbered from the image, diffusers' in the order they run
            block = level if way == "down" else levels - 1 - level
            old, new = f"{side}.{way}.{level}", f"{side}.{way}_blocks.{block}"
            modules[f"{old}.{way}sample.conv"] = f"{new}.{way}samplers.0.conv"
            for i in range(layers if way == "down" else layers + 1):
                modules |= renamed(VAE_RESNET, f"{old}.block.{i}", f"{new}.resnets.{i}")
        for i in range(2):
            modules |= renamed(VAE_RESNET, f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}")
        modules |= renamed(VAE_ATTENTION, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
    return parameters(modules)


def clip_layout(shapes: TensorShapes) -> Layout:
    """Return CLIP ViT-L's layout, in transformers' names already. Raises CheckpointError naming a missing key."""
    layers = count(shapes, "text_model.encoder.layers")
    tokens = shape(shapes, "text_model.embeddings.token_embedding.weight", axes=2)
    config = _text_config(
        architecture="CLIPTextModel",
        activation="quick_gelu",
        tokens=tokens,
        positions=shape(shapes, "text_model.embeddings.position_embedding.weight", axes=2),
        mlp_width=shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", axes=2)[0],
        layers=layers,
        projection_dim=tokens[1],
    )
    return Layout(config, clip_names(layers))


def clip_names(layers: int) -> Names:
    """Return the names of CLIP ViT-L's text encoder with so many layers."""
    same = [
        "text_model.embeddings.token_embedding",
        "text_model.embeddings.position_embedding",
        "text_model.final_layer_norm",
        *(f"text_model.encoder.layers.{i}.{part}" for i in range(layers) for part in CLIP_LAYER),
    ]
    return parameters({name: name for name in same})


def openclip_layout(shapes: TensorShapes) -> Layout:
    """Return the layout of OpenCLIP ViT-bigG's text encoder with its projection.

    OpenCLIP keeps query, key and value in one `in_proj` tensor, and `text_projection` is a bare matrix [in, out]; files
    that diffusers' script wrote have a linear layer's `text_projection.weight` [out, in] instead. Raises
    CheckpointError naming a missing key.
    """
    layers = count(shapes, "transformer.resblocks")
    if "text_projection.weight" in shapes:
        projection_dim = shape(shapes, "text_projection.weight", axes=2)[0]
    else:
        projection_dim = shape(shapes, "text_projection", axes=2)[1]
    config = _text_config(
        architecture="CLIPTextModelWithProjection",
        activation="gelu",
        tokens=shape(shapes, "token_embedding.weight", axes=2),
        positions=shape(shapes, "positional_embedding", axes=2),
        mlp_width=shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", axes=2)[0],
        layers=layers,
        projection_dim=projection_dim,
    )
    return Layout(config, openclip_names(layers))


def openclip_names(layers: int) -> Names:
    """Return the names of OpenCLIP's text encoder with so many layers; those that were published come last."""
    modules = {
        "token_embedding": "text_model.embeddings.token_embedding",
        "ln_final": "text_model.final_layer_norm",
        "text_projection": "text_projection",
    }
    names: Names = {
        "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
        "text_projection": ("text_projection.weight",),
    }
    for i in range(layers):
        old, new = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        modules |= renamed(OPENCLIP_LAYER, old, new)
        for leaf in ("weight", "bias"):
            names[f"{old}.attn.in_proj_{leaf}"] = tuple(f"{new}.self_attn.{part}_proj.{leaf}" for part in "qkv")
    return parameters(modules) | names


def _text_config(
    *,
    architecture: str,
    activation: str,
    tokens: tuple[int, ...],
    positions: tuple[int, ...],
    mlp_width: int,
    layers: int,
    projection_dim: int,
) -> dict[str, Any]:
    """Return a transformers config as SDXL's text encoders have it."""
    vocab_size, width = tokens
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        # not the end token's id: the published configs say 2, which readers take as "the largest id"
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": mlp_width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions[0],
        "model_type": "clip_text_model",
        "num_attention_heads": heads(width),
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection_dim,
        "vocab_size": vocab_size,
    }


def heads(width: int) -> int:
    """Return the number of attention heads for `width` channels. Raises CheckpointError if it is not whole."""
    if width % HEAD_WIDTH:
        raise CheckpointError(f"an attention is {width} wide, which is not heads of {HEAD_WIDTH}")
    return width // HEAD_WIDTH


def shape(shapes: TensorShapes, key: str, axes: int = 4) -> tuple[int, ...]:
    """Return the shape of `key`. Raises CheckpointError if it is missing or has another number of axes."""
    if key not in shapes:
        raise CheckpointError(f"{key} is missing")
    if len(shapes[key]) != axes:
        raise CheckpointError(f"{key} has shape {shapes[key]}, not {axes} axes")
    return shapes[key]


def count(shapes: TensorShapes, prefix: str) -> int:
    """Return how many numbered parts `prefix` has. Raises CheckpointError if a number is left out."""
    start = len(prefix) + 1
    parts = (key[start:].partition(".")[0] for key in shapes if key.startswith(f"{prefix}."))
    numbers = {int(part) for part in parts if part.isdecimal()}
    missing = set(range(len(numbers))) - numbers
    if missing:
        raise CheckpointError(f"{prefix}.{min(missing)} is missing")
    return len(numbers)


def renamed(parts: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Return the full old and new names of a block's `parts`."""
    return {f"{old}.{part}": f"{new}.{name}" for part, name in parts.items()}


def parameters(modules: Mapping[str, str]) -> Names:
    """Return the old and new keys of every module's weight and bias."""
    return {f"{old}.{leaf}": (f"{new}.{leaf}",) for old, new in modules.items() for leaf in ("weight", "bias")}
