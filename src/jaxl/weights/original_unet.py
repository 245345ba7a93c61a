"""SDXL's U-Net in the layout it was published in (`sgm`'s `UNetModel`): its config from keys and shapes, and the names.

`input_blocks` and `output_blocks` are flat lists; a level, which is a block in diffusers, ends with its down- or
upsampling. ComfyUI's model detection found that transformers may differ in depth from block to block (SSD-1B), and that
the middle may be a single residual block (SSD-1B, Vega) or nothing (KOALA).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxl.errors import CheckpointError
from jaxl.weights.original_layout import HEAD_WIDTH, Layout, TensorShapes, count, heads, parameters, renamed, shape

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
TRANSFORMER_LAYER = (
    *(f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
MIDDLES = {3: "UNetMidBlock2DCrossAttn", 1: "UNetMidBlock2D", 0: None}
FIRST_CONTEXT = ".transformer_blocks.0.attn2.to_k.weight"


def unet_layout(shapes: TensorShapes, pooled_dim: int, time_ids: int) -> Layout:
    """Return the U-Net's layout, from keys without `model.diffusion_model.`.

    The vector conditioning is the pooled prompt, `pooled_dim` wide, and `time_ids` sizes: 6, or 5 in the refiner.
    Raises CheckpointError naming a missing key, or what a diffusers `UNet2DConditionModel` cannot express.
    """
    of_down, channels, down = way_down(shapes)
    of_middle, mid_depth = middle(shapes)
    modules = {**ENDS, **of_down, **of_middle}
    up: list[list[int]] = [[]]
    for n in range(count(shapes, "output_blocks")):
        old, new = f"output_blocks.{n}", f"up_blocks.{len(up) - 1}"
        modules |= _block(shapes, old, new, len(up[-1]))
        up[-1].append(_depth(shapes, f"{old}.1"))
        sampler = f"{old}.{2 if up[-1][-1] else 1}.conv"  # comes after the transformer, if there is one
        if f"{sampler}.weight" in shapes:
            modules[sampler] = f"{new}.upsamplers.0.conv"
            up.append([])

    ends = ("input_blocks.0.0.weight", "out.2.weight", "label_emb.0.0.weight")
    config = network_config(shapes, ends, pooled_dim, time_ids) | level_config(channels, down, mid_depth, up)
    return Layout(config | {"mid_block_type": MIDDLES[count(shapes, "middle_block")]}, parameters(modules))


def way_down(shapes: TensorShapes) -> tuple[dict[str, str], list[int], list[list[int]]]:
    """Return the names of the blocks on the way down, their channels, and the depths of their transformers."""
    modules: dict[str, str] = {}
    channels: list[int] = []
    down: list[list[int]] = [[]]
    for n in range(1, count(shapes, "input_blocks")):
        old, new = f"input_blocks.{n}", f"down_blocks.{len(down) - 1}"
        if f"{old}.0.op.weight" in shapes:
            modules[f"{old}.0.op"] = f"{new}.downsamplers.0.conv"
            down.append([])
            continue
        if not down[-1]:
            channels.append(shape(shapes, f"{old}.0.in_layers.2.weight")[0])
        modules |= _block(shapes, old, new, len(down[-1]))
        down[-1].append(_depth(shapes, f"{old}.1"))
    return modules, channels, down


def middle(shapes: TensorShapes) -> tuple[dict[str, str], int]:
    """Return the names of the middle, and the depth of its transformer."""
    parts, depth = count(shapes, "middle_block"), _depth(shapes, "middle_block.1")
    if parts not in MIDDLES or (parts == 3) != (depth > 0):
        raise CheckpointError("middle_block is neither block, transformer, block nor one block nor absent")
    modules = _transformer("middle_block.1", "mid_block.attentions.0", depth)
    for i in range(0, parts, 2):
        modules |= renamed(RESNET, f"middle_block.{i}", f"mid_block.resnets.{i // 2}")
    return modules, depth


def network_config(shapes: TensorShapes, ends: tuple[str, str, str], pooled_dim: int, time_ids: int) -> dict[str, Any]:
    """Return the part of the config that is not about levels.

    `ends` are the keys of the first and the last convolution, and of the layer that takes the vector conditioning.
    """
    first, last, vector = ends
    vector_dim = shape(shapes, vector, axes=2)[1]
    size_dim, rest = divmod(vector_dim - pooled_dim, time_ids)
    if rest or size_dim <= 0:
        raise CheckpointError(
            f"{vector} takes {vector_dim} values, not the pooled prompt's {pooled_dim} and {time_ids} sizes"
        )
    context = next((key for key in shapes if key.endswith(FIRST_CONTEXT)), None)
    if context is None:
        raise CheckpointError("the U-Net has no transformer, so this is not SDXL")
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": size_dim,
        "center_input_sample": False,
        "cross_attention_dim": shape(shapes, context, axes=2)[1],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": shape(shapes, first)[1],
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": shape(shapes, last)[0],
        "projection_class_embeddings_input_dim": vector_dim,
        "sample_size": 128,
        "use_linear_projection": len(shapes.get(context.replace(FIRST_CONTEXT, ".proj_in.weight"), ())) == 2,
    }


def _block(shapes: TensorShapes, old: str, new: str, i: int) -> dict[str, str]:
    """Return the names of the residual block and the transformer in one block, the `i`-th of its level."""
    transformer = _transformer(f"{old}.1", f"{new}.attentions.{i}", _depth(shapes, f"{old}.1"))
    return renamed(RESNET, f"{old}.0", f"{new}.resnets.{i}") | transformer


def _transformer(old: str, new: str, depth: int) -> dict[str, str]:
    """Return the names of a transformer, the same in both layouts; none for depth 0."""
    layers = [f"transformer_blocks.{i}.{part}" for i in range(depth) for part in TRANSFORMER_LAYER]
    return {f"{old}.{part}": f"{new}.{part}" for part in ("norm", "proj_in", *layers, "proj_out") if depth}


def _depth(shapes: TensorShapes, transformer: str) -> int:
    return count(shapes, f"{transformer}.transformer_blocks")


def level_config(
    channels: Sequence[int], down: Sequence[Sequence[int]], mid_depth: int, up: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return the part of the config about levels, from the transformers' depths on the way down and up."""
    layers = [len(depths) for depths in down]
    if not all(layers) or [len(depths) for depths in up] != [n + 1 for n in reversed(layers)]:
        raise CheckpointError("output_blocks do not mirror input_blocks")
    for depths in (*down, *up):
        if any(depths) and not all(depths):
            raise CheckpointError(f"a level has transformers in some of its blocks only (depths {list(depths)})")

    # a level without transformers needs a depth too; only the middle reads it, and takes the last one
    down_depths = [_one_or_each(depths) or 1 for depths in down]
    if mid_depth and not any(down[-1]):
        down_depths[-1] = mid_depth
    if mid_depth and down_depths[-1] != mid_depth:
        raise CheckpointError(f"middle_block is {mid_depth} transformers deep, the last input_blocks {down_depths[-1]}")
    up_depths = [_one_or_each(depths) or mirrored for depths, mirrored in zip(up, reversed(down_depths), strict=True)]
    symmetric = up_depths == down_depths[::-1] and all(isinstance(depth, int) for depth in down_depths)

    attentive = [any(depths) or any(mirrored) for depths, mirrored in zip(down, reversed(up), strict=True)]
    attentive[-1] |= mid_depth > 0
    return {
        "block_out_channels": list(channels),
        "attention_head_dim": [
            heads(width) if used else max(width // HEAD_WIDTH, 1)
            for width, used in zip(channels, attentive, strict=True)
        ],
        "down_block_types": ["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in down],
        "layers_per_block": _one_or_each(layers),
        "reverse_transformer_layers_per_block": None if symmetric else up_depths,
        "transformer_layers_per_block": down_depths,
        "up_block_types": ["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in up],
    }


def _one_or_each(values: Sequence[int]) -> int | list[int]:
    """Return one number where all are equal, as configs have it."""
    return values[0] if len(set(values)) == 1 else list(values)
