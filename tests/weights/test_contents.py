"""What a checkpoint holds, told from its headers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BASE, FAMILIES
from original_sdxl import write_model
from safetensors.torch import save_file

from jaxl.cli.app import run
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


def test_a_file_without_a_vae_and_with_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, key = tmp_path / "model.safetensors", "model.diffusion_model.time_embed.0"
    tensors = write_model(file, "base").tensors
    kept = {key: value for key, value in tensors.items() if not key.startswith("first_stage_model.")}
    kept[f"{key}.weight"] = kept[f"{key}.weight"].to(torch.float8_e4m3fn)
    save_file(kept | {f"{key}.scale_weight": torch.ones(())}, file)
    assert run(["inspect", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {part["name"]: part["dtypes"] for part in report["components"]} == {
        "unet": ["float16", "float8_e4m3fn with scales"],
        "text_encoder": ["float16"],
        "text_encoder_2": ["float16"],
    }
    assert (report["missing"], report["size"]) == (["vae"], "1024x1024")
    assert run(["inspect", str(file)]) == 0
    assert re.search(r"^vae +- +-  give one with --vae$", capsys.readouterr().out, re.M)
