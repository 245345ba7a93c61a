"""ControlNets, read from folders and files: in diffusers' names or in those of the ControlNet that was published first.

https://github.com/lllyasviel/ControlNet; a file tells its structure by its keys, and what no shape tells is taken from
the U-Net that it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxl.config import EMPTY, ControlNetConfig, UNetConfig
from jaxl.errors import CheckpointError
from jaxl.weights import kinds
from jaxl.weights.folder import Part, read_part
from jaxl.weights.original_layout import TensorShapes, count, parameters, shape
from jaxl.weights.original_unet import ENDS, middle, way_down
from jaxl.weights.store import Tensor
from jaxl.weights.tensors import put, read_tensors

COMPONENT = "controlnet"
PREFIX = "control_model."
PICTURE = "controlnet_cond_embedding"
KINDS = "task_embedding"  # which a union has
SIZES = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")  # SDXL takes sizes, older Stable Diffusions do not


@dataclass(frozen=True)
class OpenedControlNet:
    """A ControlNet, opened but not read: its config, and its tensors by their diffusers keys."""

    source: str
    config: ControlNetConfig
    tensors: Mapping[str, Tensor]


def read_controlnet(path: Path, source: str | None, unet: UNetConfig, variant: str | None = None) -> OpenedControlNet:
    """Open a folder or a file, reading only headers and JSON. Raises CheckpointError unless it fits the U-Net."""
    if path.is_dir():
        part: Part = read_part(path, COMPONENT, variant=variant, source=source)
        opened = OpenedControlNet(part.source, ControlNetConfig.from_json(part.config), part.tensors)
    else:
        opened = _read_file(path, unet)
    own = opened.config
    for name, theirs, ours in (
        ("block_out_channels", own.unet.channels, unet.channels),
        ("cross_attention_dim", own.unet.cross_attention_dim, unet.cross_attention_dim),
        ("projection_class_embeddings_input_dim", own.unet.projection_input_dim, unet.projection_input_dim),
        ("residual blocks", [*map(len, own.unet.down)], [*map(len, unet.down)]),
        ("in_channels", own.unet.in_channels, unet.out_channels),
        ("conditioning_channels", own.picture_channels, 3),
    ):
        if theirs != ours:
            raise CheckpointError(f"{opened.source}: made for another model: its {name} are {theirs}, not {ours}")
    return opened


def _read_file(file: Path, unet: UNetConfig) -> OpenedControlNet:
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in read_tensors(file).items()}
    if not any(key.startswith((f"{PICTURE}.", "input_hint_block.")) for key in tensors):
        raise CheckpointError(f"{file}: not a ControlNet but {kinds.kind(tensors)}")
    if "lora_controlnet" in tensors:
        raise CheckpointError(f"{file}: a Control-LoRA, which jaxl does not run; give a whole ControlNet")
    if not any(key in tensors for key in SIZES):
        raise CheckpointError(f"{file}: a ControlNet of Stable Diffusion 1 or 2, without label_emb; give one of SDXL")
    try:
        named = _in_diffusers_names(file, tensors)
        config = _config({key: tensor.shape for key, tensor in named.items()}, unet)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}".replace(f"{file}: {file}: ", f"{file}: ")) from error
    return OpenedControlNet(str(file), config, named)


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
