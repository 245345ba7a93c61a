"""ControlNet-LLLites, read from files as sd-scripts writes them: modules named after the layers that they change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from math import prod
from pathlib import Path

from jaxl.config import LATENT, LLLiteConfig, LLLiteModule, UNetConfig
from jaxl.errors import CheckpointError
from jaxl.nn.unet import unet_shapes
from jaxl.weights.adapters.names import original_names
from jaxl.weights.layout import flatten, torch_shape
from jaxl.weights.original_layout import TensorShapes, shape
from jaxl.weights.store import Tensor

PREFIX = "lllite_unet_"
LAYERS = re.compile(r".*\.transformer_blocks\.\d+\.(attn1\.to_[qkv]|attn2\.to_q)")


def read_lllite(
    file: Path, tensors: Mapping[str, Tensor], unet: UNetConfig, base: Mapping[str, Tensor]
) -> tuple[LLLiteConfig, Mapping[str, Tensor]]:
    """Return the config of the ControlNet-LLLite that a file has, and its tensors. Raises CheckpointError."""
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    layers = module_layers(unet)
    modules = []
    for name in dict.fromkeys(key.partition(".")[0] for key in tensors):
        if name not in layers:
            own = "made for another model, such as Stable Diffusion 1"
            raise CheckpointError(f"{file}: {own}: this one has no layer for {name}")
        try:
            modules.append(_module(shapes, name, layers[name]))
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error
    return LLLiteConfig(tuple(modules)), tensors


def module_layers(unet: UNetConfig) -> dict[str, str]:
    """Return the U-Net's layers that modules may change, by the modules' names."""
    layers = [key.removesuffix(".weight") for key in flatten(unet_shapes(unet)) if key.endswith(".weight")]
    original = original_names(layers)
    return {f"{PREFIX}{original[layer].replace('.', '_')}": layer for layer in layers if LAYERS.fullmatch(layer)}


def _module(shapes: TensorShapes, name: str, layer: str) -> LLLiteModule:
    # activations stand between them
    convs = [*takewhile(shapes.__contains__, (f"{name}.conditioning1.{i}.weight" for i in (0, 2, 4, 6)))]
    inner, width = shape(shapes, f"{name}.down.0.weight", axes=2)
    return LLLiteModule(
        name=name,
        layer=layer,
        width=width,
        embedded=shape(shapes, convs[-1])[0] if convs else 0,
        inner=inner,
        strides=tuple(shape(shapes, conv)[-1] for conv in convs),
    )


def check_lllite(source: str, own: LLLiteConfig, unet: UNetConfig) -> None:
    """Raise CheckpointError unless modules are as wide as the layers, and see pictures as large as these do."""
    shapes = flatten(unet_shapes(unet))
    for module in own.modules:
        key = f"{module.layer}.weight"
        width = torch_shape(key, shapes[key].shape)[1]
        if module.width != width:
            raise CheckpointError(
                f"{source}: made for another model: {module.name} is {module.width} wide, not {width}"
            )
        if prod(module.strides) != (wanted := LATENT * scale(unet, module.layer)):
            remedy = f"its picture is 1/{prod(module.strides)} as large, not 1/{wanted}"
            raise CheckpointError(f"{source}: {module.name} does not fit: {remedy}")


def scale(unet: UNetConfig, layer: str) -> int:
    """Return how many times smaller than the latents a layer's input is, each way."""
    way, _, rest = layer.partition(".")
    last = len(unet.channels) - 1
    block = int(rest.partition(".")[0]) if way != "mid_block" else last
    return 1 << (last - block if way == "up_blocks" else block)
