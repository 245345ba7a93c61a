"""What a checkpoint holds, told from its headers."""

from typing import Any

import pytest
from families import BASE, FAMILIES

from jaxl.config import UNetConfig
from jaxl.presets import SDXL_BASE
from jaxl.weights.contents import components, family
from jaxl.weights.source import EMBEDDED, open_checkpoint

PUBLISHED_DEPTHS: dict[str, dict[str, Any]] = {
    "refiner": {"transformer_layers_per_block": 4},
    "ssd-1b": {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "vega": {},
    "inpainting": {"transformer_layers_per_block": [1, 2, 10]},
}


def test_the_embedded_model() -> None:
    found = {component.name: component for component in components(open_checkpoint("tiny"))}
    assert {name: component.parameters for name, component in found.items()} == {
        "unet": 11_213_444,
        "vae": 2_360_743,
        "text_encoder": 867_072,
        "text_encoder_2": 2_224_704,
    }
    for component in found.values():
        assert component.dtypes == ["float16"]
        assert component.bytes == 2 * component.parameters
        (file,) = component.files
        assert file.startswith(str(EMBEDDED["tiny"] / component.name))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SDXL_BASE["unet"], "SDXL base"),
        (FAMILIES["inpainting"] | PUBLISHED_DEPTHS["inpainting"], "SDXL base inpainting"),
        (FAMILIES["refiner"] | PUBLISHED_DEPTHS["refiner"], "SDXL refiner"),
        (FAMILIES["ssd-1b"] | PUBLISHED_DEPTHS["ssd-1b"], "SSD-1B"),
        (FAMILIES["vega"], "Segmind-Vega"),
        (FAMILIES["koala"], "SDXL-like"),
        (BASE, "SDXL-like"),  # three layers in place of ten
        (FAMILIES["inpainting"], "SDXL-like inpainting"),
        (open_checkpoint("tiny").configs["unet"], "SDXL-like"),
    ],
)
def test_family(config: dict[str, Any], name: str) -> None:
    assert family(UNetConfig.from_json(config)) == name
