"""T2I-Adapters, read from files: in diffusers' names, or in those that they were published in.

https://github.com/TencentARC/T2I-Adapter, whose `Adapter_XL` has its residual blocks in one list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxl.config import LATENT, T2IAdapterConfig, UNetConfig
from jaxl.errors import CheckpointError
from jaxl.nn.t2i_adapter import HALVED
from jaxl.weights.original_layout import count, shape
from jaxl.weights.store import Tensor
from jaxl.weights.tensors import put

OUTER = "adapter."
FEATURES = 4  # of those that are published
FACTOR, OLD_FACTOR = 16, 8  # how many times pictures are folded for SDXL, and for Stable Diffusion 1
COLOURS = (1, 3)
IN_LIST = re.compile(r"body\.(\d+)\.(in_conv|block[12])\.(.+)")


def read_t2i_adapter(
    file: Path, tensors: Mapping[str, Tensor], unet: UNetConfig, base: Mapping[str, Tensor]
) -> tuple[T2IAdapterConfig, Mapping[str, Tensor]]:
    """Return the config of the T2I-Adapter that a file has, and its tensors by their diffusers keys.

    Raises CheckpointError.
    """
    own = {key.removeprefix(OUTER): tensor for key, tensor in tensors.items()}
    shapes = {key: tensor.shape for key, tensor in own.items()}
    if "conv_in.weight" not in shapes:
        raise CheckpointError(f"{file}: a light T2I-Adapter of Stable Diffusion 1, without conv_in; give one of SDXL")
    folded = shape(shapes, "conv_in.weight")[1]
    if folded in [colours * OLD_FACTOR**2 for colours in COLOURS]:
        raise CheckpointError(f"{file}: a T2I-Adapter of Stable Diffusion 1 or 2, by its conv_in; give one of SDXL")
    if not any(".resnets." in key for key in own):
        own = _nested(own, count(shapes, "body") // FEATURES)
        shapes = {key: tensor.shape for key, tensor in own.items()}
    places = [f"body.{i}.resnets" for i in range(count(shapes, "body"))]
    return T2IAdapterConfig(
        picture_channels=folded // FACTOR**2,
        channels=tuple(shape(shapes, f"{place}.0.block1.weight")[0] for place in places),
        factor=FACTOR,
        depth=count(shapes, places[0]),
    ), {f"{OUTER}{key}": tensor for key, tensor in own.items()}


def _nested(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the tensors with so many residual blocks of the list in each block."""
    nested: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if (found := IN_LIST.fullmatch(key)) and depth:
            (block, layer), part = divmod(int(found[1]), depth), found[2]
            place = f"body.{block}" if part == "in_conv" else f"body.{block}.resnets.{layer}"
            key = f"{place}.{part}.{found[3]}"
        put(nested, key, tensor)
    return nested


def check_t2i_adapter(source: str, own: T2IAdapterConfig, unet: UNetConfig) -> None:
    """Raise CheckpointError unless a T2I-Adapter's features are as wide and as large as what they are added to."""
    last = len(unet.channels) - 1
    # the width of each place, and how many times what is there was halved
    places = [
        (width, i if i == last or any(depths) else i + 1)
        for i, (width, depths) in enumerate(zip(unet.channels, unet.down, strict=True))
    ]
    places += [] if unet.mid is None else [(unet.channels[-1], last)]
    wanted = [(width, LATENT << halved) for width, halved in places]
    features = [(width, own.factor << (i >= HALVED)) for i, width in enumerate(own.channels)]
    if not features or wanted[: len(features)] != features:
        told, here = (", ".join(f"{width} at 1/{size}" for width, size in each) for each in (features, wanted))
        raise CheckpointError(f"{source}: made for another model: its features are {told}; here they go to {here}")
    if own.picture_channels not in COLOURS:
        raise CheckpointError(f"{source}: its pictures have {own.picture_channels} channels, not 1 or 3")
