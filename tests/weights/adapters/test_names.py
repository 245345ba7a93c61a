"""Every name that files have for a layer, and none that means two."""

from typing import Any

import pytest
from adapter_files import SHAPES

from jaxl.config import UNetConfig
from jaxl.nn.unet import unet_shapes
from jaxl.presets import SDXL_BASE
from jaxl.run.model import Model
from jaxl.weights.adapters.names import PREFIXES, Layer, _paths, layers, original_names, spellings
from jaxl.weights.layout import flatten, to_torch
from jaxl.weights.original_unet import unet_layout

SDXL = Model.from_configs(SDXL_BASE).shapes()

# U-Nets whose blocks differ from SDXL's
RELATIVES: dict[str, dict[str, Any]] = {
    "SDXL": {},
    "refiner": {
        "block_out_channels": [384, 768, 1536, 1536],
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
    },
    "SSD-1B": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 2, 4],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "three in a level": {"layers_per_block": 3},
}


@pytest.mark.parametrize("name", RELATIVES)
def test_original_names_are_those_of_single_files(name: str) -> None:
    """Whoever renames a U-Net by them gets a file from which `unet_layout` reads the same names back."""
    config = SDXL_BASE["unet"] | RELATIVES[name]
    leaves = flatten(unet_shapes(UNetConfig.from_json(config)))
    old = original_names(key.rpartition(".")[0] for key in leaves)
    shapes = {}
    for key, leaf in leaves.items():
        module, _, part = key.rpartition(".")
        shapes[f"{old[module]}.{part}"] = tuple(leaf.shape[axis] for axis in to_torch(key, leaf.shape))
    assert len(shapes) == len(leaves)
    pooled_dim, time_ids = (1280, 5) if name == "refiner" else (1280, 6)
    layout = unet_layout(shapes, pooled_dim, time_ids)
    for key in leaves:
        module, _, part = key.rpartition(".")
        assert layout.names[f"{old[module]}.{part}"] == (key,)


def test_no_name_means_two_layers() -> None:
    known = layers(SDXL)
    original = original_names(layer.module for layer in known if layer.component == "unet")
    told = {
        (f"{prefix}{path.replace('.', '_')}", layer)
        for layer in known
        for path in _paths(layer, original)
        for prefix in PREFIXES[layer.component]
    }
    assert len({name for name, _ in told}) == len(told) == len(spellings(known))


def test_the_layers_of_sdxl() -> None:
    """722 linear layers in the transformers; 72 and 192 in the text encoders."""
    known = layers(SDXL)
    linear = [layer for layer in known if layer.component == "unet" and ".attentions." in layer.module]
    assert len([layer for layer in linear if len(layer.weight) == 2]) == 722
    for component, count in (("text_encoder", 72), ("text_encoder_2", 192)):
        inside = [layer for layer in known if layer.component == component and ".layers." in layer.module]
        assert len([layer for layer in inside if len(layer.weight) == 2]) == count
    assert Layer("unet", "conv_in", (320, 4, 3, 3), (320,)) in known
    query = "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k"
    assert Layer("unet", query, (1280, 2048), None) in known
    feed = "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"
    assert Layer("unet", feed, (10240, 1280), (10240,)) in known
    assert Layer("text_encoder_2", "text_projection", (1280, 1280), None) in known


@pytest.mark.parametrize(
    ("spelling", "module"),
    [
        ("lora_unet_input_blocks_4_1_T_attn1_to_q", "down_blocks.1.attentions.0.T.attn1.to_q"),
        ("lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_output_blocks_6_0_skip_connection", "up_blocks.2.resnets.0.conv_shortcut"),
        ("lora_unet_middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("lora_unet_middle_block_2_in_layers_2", "mid_block.resnets.1.conv1"),
        ("lora_unet_out_2", "conv_out"),
        ("lora_unet_label_emb_0_0", "add_embedding.linear_1"),
        ("lora_unet_add_embedding_linear_1", "add_embedding.linear_1"),
        ("lora_unet_mid_block_attentions_0_T_attn1_to_out_0", "mid_block.attentions.0.T.attn1.to_out.0"),
        ("unet_mid_block_attentions_0_T_attn1_processor_to_out", "mid_block.attentions.0.T.attn1.to_out.0"),
        ("base_model_model_conv_in", "conv_in"),
        ("diffusion_model_input_blocks_0_0", "conv_in"),
        ("lycoris_conv_in", "conv_in"),
        ("oft_unet_input_blocks_0_0", "conv_in"),
        ("conv_in", "conv_in"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder_text_model_encoder_layers_0_self_attn_to_out", "text_model.encoder.layers.0.self_attn.out_proj"),
        ("text_encoders_clip_l_transformer_text_model_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te2_text_projection", "text_projection"),
    ],
)  # fmt: skip
def test_spellings(spelling: str, module: str) -> None:
    layer = spellings(layers(SHAPES))[spelling.replace("_T_", "_transformer_blocks_0_")]
    assert layer.module == module.replace(".T.", ".transformer_blocks.0.")
    encoder = "text_encoder" if spelling.startswith(("lora_te1", "text_encoder")) else "unet"
    assert layer.component == ("text_encoder_2" if spelling.startswith("lora_te2") else encoder)


def test_the_refiners_encoder() -> None:
    """Its only one goes by the name that Stable Diffusion 1's has."""
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert name not in spellings(layers(SHAPES))
    refiner = {component: shapes for component, shapes in SHAPES.items() if component != "text_encoder"}
    assert spellings(layers(refiner))[name].component == "text_encoder_2"
