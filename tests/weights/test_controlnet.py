"""ControlNets' files: both namings are read alike, and what is none, or for another model, is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controlnets import in_original_names, tensors, write_folder
from safetensors.numpy import save_file

from jaxl.errors import CheckpointError
from jaxl.weights.source import open_control


@pytest.fixture(scope="module")
def own(small: Any) -> dict[str, np.ndarray]:
    return tensors(small[0].model, 1)


def test_layouts_are_read_alike(small: Any, own: dict[str, np.ndarray], tmp_path: Path) -> None:
    pipe = small[0]
    save_file(own, tmp_path / "diffusers.safetensors")
    save_file(in_original_names(own, pipe.model), tmp_path / "original.safetensors")
    folder = write_folder(tmp_path / "folder", dict(pipe.checkpoint.configs["unet"]), pipe.model, 1)
    sources = (tmp_path / "diffusers.safetensors", tmp_path / "original.safetensors", folder)
    opened: list[Any] = [open_control(source, pipe.model.unet, {}) for source in sources]
    for each in opened:
        assert each.config.residuals == opened[0].config.residuals
        assert (each.config.unet.down, each.config.unet.mid) == (pipe.model.unet.down, pipe.model.unet.mid)
        assert each.config.embedding == opened[0].config.embedding
        assert set(each.tensors) == set(own)
        for key, tensor in each.tensors.items():
            np.testing.assert_array_equal(tensor.read(), own[key])


def without(own: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in own.items() if part not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: without(own, "add_embedding"), "of Stable Diffusion 1 or 2"),
        (lambda own: without(own, "controlnet_cond_embedding"), "not a ControlNet but"),
        (lambda own: {f"lora_unet_x{i}.lora_down.weight": a for i, a in enumerate(own.values())}, "but a LoRA"),
        (
            lambda own: {key: a.repeat(2, 1) if key.endswith("attn2.to_k.weight") else a for key, a in own.items()},
            "cross",
        ),
    ],
)
def test_what_is_refused(small: Any, own: dict[str, np.ndarray], tmp_path: Path, change: Any, message: str) -> None:
    save_file(change(own), tmp_path / "some.safetensors")
    with pytest.raises(CheckpointError, match=message) as raised:
        open_control(tmp_path / "some.safetensors", small[0].model.unet, {})
    assert "\n" not in str(raised.value)


def test_a_missing_tensor_is_named(small: Any, own: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file(without(own, "controlnet_down_blocks.1.bias"), tmp_path / "some.safetensors")
    with pytest.raises(CheckpointError, match=r"some\.safetensors: controlnet lacks controlnet_down_blocks\.1\.bias"):
        small[0].add_control("some", tmp_path / "some.safetensors")
    assert "some" not in small[0].controls
