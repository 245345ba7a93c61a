"""Every U-Net of the SDXL family, scaled down: the block structure of the original, a few channels wide."""

from typing import Any

BASE: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 64, 128],
    "layers_per_block": 2,
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "cross_attention_dim": 48,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
    "norm_num_groups": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "base": BASE,
    "refiner": BASE
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [32, 64, 96, 96],
        "attention_head_dim": [1, 2, 3, 3],
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 24 + 5 * 8,
    },
    "inpainting": BASE | {"in_channels": 9},
    "ssd-1b": BASE
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
    },
    "vega": BASE
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    },
    "koala": BASE | {"layers_per_block": 1, "mid_block_type": None},
    "convolutional projections": BASE | {"use_linear_projection": False},
}
# with as few layers as tell what is at which level and place, for what compiles them
FEW: dict[str, Any] = {"layers_per_block": 1, "transformer_layers_per_block": [1, 1, 2]}
_OWN: dict[str, dict[str, Any]] = {
    "refiner": {"transformer_layers_per_block": [1, 1, 2, 1]},
    "ssd-1b": {
        "transformer_layers_per_block": [1, [2], [1]],
        "reverse_transformer_layers_per_block": [[1, 2], [2, 1], 1],
    },
    "vega": {
        "transformer_layers_per_block": [1, [1], [2]],
        "reverse_transformer_layers_per_block": [[2, 1], [1, 1], 1],
    },
}
THIN: dict[str, dict[str, Any]] = {name: raw | FEW | _OWN.get(name, {}) for name, raw in FAMILIES.items()}
# apart, because it takes one argument more, the guidance scale, which the original layout has no name for
LCM: dict[str, Any] = BASE | {"time_cond_proj_dim": 16}
