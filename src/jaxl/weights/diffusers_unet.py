"""A U-Net file in diffusers' names without its config.json, as SDXL-Lightning's are published."""

from __future__ import annotations

from typing import Any

from jaxl.errors import CheckpointError
from jaxl.weights.original_layout import Layout, Shapes, count, shape
from jaxl.weights.original_unet import level_config, network_config

MIDDLES = {2: "UNetMidBlock2DCrossAttn", 1: "UNetMidBlock2D", 0: None}  # by the number of residual blocks
GUIDANCE = "time_embedding.cond_proj.weight"  # takes the guidance scale in a U-Net that was distilled with it


def diffusers_unet_layout(shapes: Shapes, pooled_dim: int, time_ids: int) -> Layout:
    """Return the layout as `original_unet.unet_layout` does, for a U-Net whose names need no change."""

    def depths(block: str) -> list[int]:
        resnets = range(count(shapes, f"{block}.resnets"))
        return [count(shapes, f"{block}.attentions.{i}.transformer_blocks") for i in resnets]

    down, up = ([depths(f"{way}.{i}") for i in range(count(shapes, way))] for way in ("down_blocks", "up_blocks"))
    channels = [shape(shapes, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(len(down))]
    resnets, mid_depth = count(shapes, "mid_block.resnets"), sum(depths("mid_block"))
    if resnets not in MIDDLES or (resnets == 2) != (mid_depth > 0):
        raise CheckpointError("mid_block is neither block, transformer, block nor one block nor absent")
    ends = ("conv_in.weight", "conv_out.weight", "add_embedding.linear_1.weight")
    config: dict[str, Any] = network_config(shapes, ends, pooled_dim, time_ids)
    config |= level_config(channels, down, mid_depth, up) | {"mid_block_type": MIDDLES[resnets]}
    if GUIDANCE in shapes:
        config["time_cond_proj_dim"] = shape(shapes, GUIDANCE, axes=2)[1]
    return Layout(config, {key: (key,) for key in shapes})
