"""ControlNets and their kin, opened from a folder or a file, which tells by its keys of what kind it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxl.config import ControlConfig, ControlNetConfig, LLLiteConfig, T2IAdapterConfig, UNetConfig
from jaxl.weights.controlnet import check_controlnet, read_controlnet
from jaxl.weights.folder import read_part
from jaxl.weights.lllite import check_lllite, read_lllite
from jaxl.weights.store import Tensor
from jaxl.weights.t2i_adapter import check_t2i_adapter, read_t2i_adapter
from jaxl.weights.tensors import read_tensors

COMPONENT = "controlnet"
Read = Callable[
    [Path, Mapping[str, Tensor], UNetConfig, Mapping[str, Tensor]], tuple[ControlConfig, Mapping[str, Tensor]]
]
# what some key of a file of each kind begins with, as regular expressions; others are taken for ControlNets
READERS: Mapping[str, Read] = {
    "lllite_": read_lllite,
    r"(adapter\.)?body\.\d+\.(block1|block2|in_conv|resnets)\.": read_t2i_adapter,
}
CONFIGS: Mapping[str, type[ControlNetConfig] | type[T2IAdapterConfig]] = {
    "ControlNetModel": ControlNetConfig,
    "ControlNetUnionModel": ControlNetConfig,
    "T2IAdapter": T2IAdapterConfig,
}
CHECKS: Mapping[type[ControlConfig], Callable[[str, Any, UNetConfig], None]] = {
    ControlNetConfig: check_controlnet,
    T2IAdapterConfig: check_t2i_adapter,
    LLLiteConfig: check_lllite,
}


@dataclass(frozen=True)
class OpenedControl:
    """A ControlNet or one of its kin, opened but not read: its config, and its tensors by their parameters' keys."""

    source: str
    config: ControlConfig
    tensors: Mapping[str, Tensor]


def read_control(
    path: Path, source: str | None, unet: UNetConfig, base: Mapping[str, Tensor], variant: str | None = None
) -> OpenedControl:
    """Open a folder or a file, reading only headers and JSON. Raises CheckpointError unless it fits the U-Net.

    `base` are the tensors of the U-Net, for what is made of them.
    """
    if path.is_dir():
        part = read_part(path, COMPONENT, variant=variant, source=source)
        config = CONFIGS[part.config["_class_name"]].from_json(part.config, f"{part.source}: config.json")
        opened = OpenedControl(part.source, config, part.tensors)
    else:
        tensors = read_tensors(path)
        read = next(
            (read for sign, read in READERS.items() if any(re.match(sign, key) for key in tensors)), read_controlnet
        )
        opened = OpenedControl(str(path), *read(path, tensors, unet, base))
    CHECKS[type(opened.config)](opened.source, opened.config, unet)
    return opened
