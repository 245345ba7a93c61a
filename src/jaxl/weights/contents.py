"""The networks that a checkpoint holds, told from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from jaxl.config import UNetConfig
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.tensors import stored_as

# the transformer depths that tell the published relatives of SDXL apart: down, middle, up
_FAMILIES = {
    (((0, 0), (2, 2), (10, 10)), (10,), ((10, 10, 10), (2, 2, 2), (0, 0, 0))): "SDXL base",
    (((0, 0), (4, 4), (4, 4), (0, 0)), (4,), ((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0))): "SDXL refiner",
    (((0, 0), (2, 2), (4, 4)), (), ((4, 4, 10), (2, 1, 1), (0, 0, 0))): "SSD-1B",
    (((0, 0), (1, 1), (2, 2)), (), ((2, 2, 2), (1, 1, 1), (0, 0, 0))): "Segmind-Vega",
}


@dataclass(frozen=True)
class Component:
    """One network: its parameters, the dtypes they are stored in, bytes and files."""

    name: str
    parameters: int
    dtypes: list[str]
    bytes: int
    files: list[str]


def components(checkpoint: Checkpoint) -> list[Component]:
    """Return each network of a checkpoint, without reading a tensor."""
    return [
        Component(
            name=name,
            parameters=sum(tensor.size for tensor in tensors.values()),
            dtypes=sorted({stored_as(tensor) for tensor in tensors.values()}),
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
            files=sorted({str(tensor.file) for tensor in tensors.values()}),
        )
        for name, tensors in checkpoint.tensors.items()
    ]


def family(unet: UNetConfig) -> str:
    """Return the published model whose structure the U-Net has, "SDXL-like" if there is none."""
    name = _FAMILIES.get((unet.down, unet.mid, unet.up), "SDXL-like")
    return f"{name} inpainting" if unet.in_channels == 9 else name
