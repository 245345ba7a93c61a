"""The layers of a model, and every name that files of adapters have for them.

Names have dots or underscores, and prefixes by the program that wrote them, before a module's path in diffusers' names
or in those of `sgm`. Paths hold underscores too, so no rule turns a name into a path: all names are listed, and looked
up whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxl.weights.layout import flatten, torch_shape
from jaxl.weights.original_layout import renamed
from jaxl.weights.original_unet import ENDS, RESNET

# Before a module's path, by component, once dots are underscores: sd-scripts and LyCORIS, diffusers, PEFT, ComfyUI and
# OneTrainer, SimpleTuner, and sd-scripts' OFT. A U-Net's modules may stand without any.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (
        *("lora_unet_", "unet_", "", "base_model_model_", "unet_base_model_model_"),
        *("diffusion_model_", "model_diffusion_model_", "lycoris_", "lycoris_unet_", "oft_unet_"),
    ),
    "text_encoder": (
        *("lora_te1_", "text_encoder_", "text_encoder_base_model_model_"),
        *("text_encoders_clip_l_transformer_", "text_encoders_clip_l_", "clip_l_transformer_", "clip_l_"),
    ),
    "text_encoder_2": (
        *("lora_te2_", "text_encoder_2_", "text_encoder_2_base_model_model_"),
        *("text_encoders_clip_g_transformer_", "text_encoders_clip_g_", "clip_g_transformer_", "clip_g_"),
    ),
}
REFINER_PREFIX = "lora_te_"  # of its only text encoder, as ComfyUI has it; else of Stable Diffusion 1's and 2's

ATTENTION = re.compile(r"(.*\.attn[12])\.(to_q|to_k|to_v|to_out)(\.0)?")
TEXT_ATTENTION = re.compile(r"(.*\.self_attn)\.(q|k|v|out)_proj")
OUTER = "text_model."  # transformers 5 leaves it out


@dataclass(frozen=True)
class Layer:
    """A module that an adapter may change: the shape of its weight in torch's layout, and that of its bias or None."""

    component: str
    module: str
    weight: tuple[int, ...]
    bias: tuple[int, ...] | None

    def __str__(self) -> str:
        return f"{self.component}: {self.module}"


def layers(shapes: Mapping[str, Mapping[str, Any]]) -> list[Layer]:
    """Return the layers of the networks that adapters change; `shapes` are a model's, in the devices' layout."""
    found = []
    for component in PREFIXES:
        leaves = {key: torch_shape(key, leaf.shape) for key, leaf in flatten(shapes.get(component, {})).items()}
        for key, shape in leaves.items():
            module, _, leaf = key.rpartition(".")
            if leaf == "weight":
                found.append(Layer(component, module, shape, leaves.get(f"{module}.bias")))
    return found


def spellings(known: Iterable[Layer]) -> dict[str, Layer]:
    """Return each layer by every name that files have for it, with underscores for dots."""
    known = list(known)
    original = original_names(layer.module for layer in known if layer.component == "unet")
    prefixes = dict(PREFIXES)
    if not any(layer.component == "text_encoder" for layer in known):
        prefixes["text_encoder_2"] += (REFINER_PREFIX,)
    return {
        f"{prefix}{path.replace('.', '_')}": layer
        for layer in known
        for path in _paths(layer, original)
        for prefix in prefixes[layer.component]
    }


def original_names(modules: Iterable[str]) -> dict[str, str]:
    """Return the `sgm` names of a U-Net's modules, by their names in diffusers: `unet_layout` the other way.

    `input_blocks` and `output_blocks` are counted through all blocks; what is in a block says how far.
    """
    modules = list(modules)
    blocks = {new: old for old, new in ENDS.items()}
    places = {".".join(module.split(".")[:4]) for module in modules}

    def count(part: str) -> int:
        return len({place.split(".")[3] for place in places if place.startswith(f"{part}.")})

    n = 1
    for i in range(_size(modules, "down_blocks")):
        block = f"down_blocks.{i}"
        for j in range(count(f"{block}.resnets")):
            blocks |= _block(block, j, f"input_blocks.{n + j}")
        n += count(f"{block}.resnets")
        if count(f"{block}.downsamplers"):
            blocks[f"{block}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    for j in range(2):
        blocks |= renamed({new: old for old, new in RESNET.items()}, f"mid_block.resnets.{j}", f"middle_block.{2 * j}")
    blocks["mid_block.attentions.0"] = "middle_block.1"
    n = 0
    for i in range(_size(modules, "up_blocks")):
        block = f"up_blocks.{i}"
        for j in range(count(f"{block}.resnets")):
            blocks |= _block(block, j, f"output_blocks.{n + j}")
        n += count(f"{block}.resnets")
        # it comes after the transformer, if there is one
        blocks[f"{block}.upsamplers.0.conv"] = f"output_blocks.{n - 1}.{2 if count(f'{block}.attentions') else 1}.conv"
    return {module: old for module in modules if (old := _renamed(module, blocks)) is not None}


def _block(block: str, i: int, old: str) -> dict[str, str]:
    parts = {new: f"0.{part}" for part, new in RESNET.items()}
    return renamed(parts, f"{block}.resnets.{i}", old) | {f"{block}.attentions.{i}": f"{old}.1"}


def _renamed(module: str, blocks: Mapping[str, str]) -> str | None:
    """Return a module's name, where it or the transformer that it is in has a new one."""
    if module in blocks:
        return blocks[module]
    head, attentions, rest = module.partition(".attentions.")
    number, _, inside = rest.partition(".")
    transformer = blocks.get(f"{head}{attentions}{number}")
    return f"{transformer}.{inside}" if transformer and inside else None


def _size(modules: Iterable[str], prefix: str) -> int:
    return len({module.split(".")[1] for module in modules if module.startswith(f"{prefix}.")})


def _paths(layer: Layer, original: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths by which files name a layer, without a prefix."""
    module = layer.module
    yield module
    if layer.component == "unet" and module in original:
        yield original[module]
    if match := ATTENTION.fullmatch(module):  # diffusers' oldest
        yield f"{match[1]}.processor.{match[2]}"
    if match := TEXT_ATTENTION.fullmatch(module):
        yield f"{match[1]}.to_{match[2]}"
    if module.startswith(OUTER):
        yield module.removeprefix(OUTER)
