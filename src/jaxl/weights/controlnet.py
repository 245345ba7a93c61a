"""ControlNets, read from files: in diffusers' names, or in those of the ControlNet that was published first.

https://github.com/lllyasviel/ControlNet; a file tells its structure by its keys, and what no shape tells is taken from
the U-Net that it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jaxl.config import EMPTY, ControlNetConfig, UNetConfig
from jaxl.errors import CheckpointError
from jaxl.nn.controlnet import OF_UNET
from jaxl.weights import kinds
from jaxl.weights.control_lora import MARK, changes, rebuilt
from jaxl.weights.original_layout import TensorShapes, count, parameters, shape
from jaxl.weights.original_unet import ENDS, middle, way_down
from jaxl.weights.store import Tensor
from jaxl.weights.tensors import put

PREFIX = "control_model."
PICTURE = "controlnet_cond_embedding"
GUIDANCE = "time_embedding.cond_proj."  # which ControlNets are not told
KINDS = "task_embedding"  # which a union has
SIZES = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")  # SDXL takes sizes, older Stable Diffusions do not


def check_controlnet(source: str, own: ControlNetConfig, unet: UNetConfig) -> None:
    """Raise CheckpointError unless a ControlNet fits the U-Net."""
    for name, theirs, ours in (
        ("block_out_channels", own.unet.channels, unet.channels),
        ("cross_attention_dim", own.unet.cross_attention_dim, unet.cross_attention_dim),
        ("projection_class_embeddings_input_dim", own.unet.projection_input_dim, unet.projection_input_dim),
        ("residual blocks", [*map(len, own.unet.down)], [*map(len, unet.down)]),
        ("in_channels", own.unet.in_channels, unet.out_channels),
        ("conditioning_channels", own.picture_channels, 3),
    ):
        if theirs != ours:
            raise CheckpointError(f"{source}: made for another model: its {name} are {theirs}, not {ours}")


def read_controlnet(
    file: Path, tensors: Mapping[str, Tensor], unet: UNetConfig, base: Mapping[str, Tensor]
) -> tuple[ControlNetConfig, Mapping[str, Tensor]]:
    """Return the config of the ControlNet that a file has, and its tensors by their diffusers keys.

    `base` are the tensors of the U-Net, from which a Control-LoRA is made a ControlNet. Raises CheckpointError.
    """
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    light = MARK in tensors
    if not any(key.startswith((f"{PICTURE}.", "input_hint_block.")) for key in tensors):
        raise CheckpointError(f"{file}: not a ControlNet but {kinds.kind(tensors)}")
    if light:
        tensors = changes(file, tensors)
    if not any(key in tensors for key in SIZES):
        name = "Control-LoRA" if light else "ControlNet"
        raise CheckpointError(f"{file}: a {name} of Stable Diffusion 1 or 2, without label_emb; give one of SDXL")
    try:
        named = _in_diffusers_names(file, tensors)
        if light:
            of_unet = {key: base[key] for key in base if key.startswith(OF_UNET) and not key.startswith(GUIDANCE)}
            named = rebuilt(file, named, of_unet)
        config = _config({key: tensor.shape for key, tensor in named.items()}, unet)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}".replace(f"{file}: {file}: ", f"{file}: ")) from error
    return config, named


def _in_diffusers_names(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not any(key.startswith("input_hint_block.") for key in tensors):
        return dict(tensors)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    hints = sorted({int(key.split(".")[1]) for key in shapes if key.startswith("input_hint_block.")})
    parts = ["conv_in", *(f"blocks.{i}" for i in range(len(hints) - 2)), "conv_out"]
    zeros = range(count(shapes, "zero_convs"))
    modules = {
        **ENDS,
        **way_down(shapes)[0],
        **middle(shapes)[0],
        **{f"input_hint_block.{n}": f"{PICTURE}.{part}" for n, part in zip(hints, parts, strict=True)},
        **{f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in zeros},
        "middle_block_out.0": "controlnet_mid_block",
    }
    names, named = parameters(modules), dict[str, Tensor]()
    for key, tensor in tensors.items():
        if key not in names:
            raise CheckpointError(f"{file}: {tensor.key} is not a tensor of a ControlNet")
        put(named, names[key][0], tensor)
    return named


def _config(shapes: TensorShapes, unet: UNetConfig) -> ControlNetConfig:
    """The config by shapes in diffusers' names, and what no shape tells as the U-Net has it."""

    def depths(block: str) -> tuple[int, ...]:
        found = []
        for i in range(count(shapes, f"{block}.resnets")):
            transformer = f"{block}.attentions.{i}"
            blocks = count(shapes, f"{transformer}.transformer_blocks")
            found.append(blocks or (EMPTY if f"{transformer}.norm.weight" in shapes else 0))
        return tuple(found)

    down = tuple(depths(f"down_blocks.{i}") for i in range(count(shapes, "down_blocks")))
    first = shape(shapes, "conv_in.weight")
    blocks = range(count(shapes, f"{PICTURE}.blocks"))
    picture = shape(shapes, f"{PICTURE}.conv_in.weight")
    context = next((s[1] for key, s in shapes.items() if key.endswith(".attn2.to_k.weight")), unet.cross_attention_dim)
    return ControlNetConfig(
        unet=replace(
            unet,
            in_channels=first[1],
            channels=tuple(shape(shapes, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(len(down))),
            down=down,
            mid=tuple(depth for depth in depths("mid_block") if depth) if count(shapes, "mid_block.resnets") else None,
            cross_attention_dim=context,
            projection_input_dim=shape(shapes, "add_embedding.linear_1.weight", axes=2)[1],
            time_cond_proj_dim=None,
        ),
        picture_channels=picture[1],
        embedding=(picture[0], *(shape(shapes, f"{PICTURE}.blocks.{i}.weight")[0] for i in blocks if i % 2)),
        bgr=False,
        pooled=False,
        kinds=shapes[KINDS][0] if KINDS in shapes else 0,
        fusing=count(shapes, "transformer_layes"),
    )
