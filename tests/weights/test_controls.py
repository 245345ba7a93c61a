"""Files of ControlNets' kin: their namings, what they are made of, and what is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controlnets import in_original_names, lllite_modules, random_tensors, tensors, write_lllite, write_t2i_adapter
from families import BASE
from safetensors.numpy import load_file, save_file

from jaxl.config import LLLiteConfig, T2IAdapterConfig, UNetConfig
from jaxl.errors import CheckpointError
from jaxl.nn.lllite import lllite_shapes
from jaxl.nn.t2i_adapter import t2i_adapter_shapes
from jaxl.weights.source import open_control

UNET = UNetConfig.from_json(BASE)
ADAPTER = T2IAdapterConfig(3, (32, 64, 128, 128), 16, 2)
CONFIG = {"_class_name": "T2IAdapter", "adapter_type": "full_adapter_xl", "channels": ADAPTER.channels}
CONFIG |= {"downscale_factor": 16, "in_channels": 3, "num_res_blocks": 2}


def adapter_in_original_names(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `Adapter_XL` has them: its residual blocks in one list, the first of each two with the change of widths."""
    renamed = {}
    for key, tensor in own.items():
        parts = key.split(".")[1:]
        if parts[0] == "body":
            block, inner = int(parts[1]), parts[2:]
            layer, inner = (int(inner[1]), inner[2:]) if inner[0] == "resnets" else (0, inner)
            parts = ["body", str(2 * block + layer), *inner]
        renamed[".".join(parts)] = tensor
    return renamed


@pytest.fixture(scope="module")
def adapter() -> dict[str, np.ndarray]:
    return random_tensors(t2i_adapter_shapes(ADAPTER, np.float32), 0)


def test_t2i_adapters_are_read_alike(adapter: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(CONFIG))
    save_file(adapter, tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    save_file(adapter, tmp_path / "diffusers.safetensors")
    save_file(adapter_in_original_names(adapter), tmp_path / "original.safetensors")
    for name in ("folder", "diffusers.safetensors", "original.safetensors"):
        opened = open_control(tmp_path / name, UNET, {})
        assert opened.config == ADAPTER
        assert set(opened.tensors) == set(adapter)
        for key, tensor in opened.tensors.items():
            np.testing.assert_array_equal(tensor.read(), adapter[key])


@pytest.mark.parametrize(
    ("conv_in", "message"),
    [
        (3 * 64, "a T2I-Adapter of Stable Diffusion 1 or 2"),
        (64, "a T2I-Adapter of Stable Diffusion 1 or 2"),
        (0, "light"),
    ],
)
def test_adapters_of_older_models_are_refused(adapter: Any, tmp_path: Path, conv_in: int, message: str) -> None:
    own = {key: tensor for key, tensor in adapter.items() if conv_in or "conv_in" not in key}
    if conv_in:
        own["adapter.conv_in.weight"] = np.zeros((32, conv_in, 3, 3), np.float32)
    save_file(own, tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_control(tmp_path / "old.safetensors", UNET, {})


@pytest.mark.parametrize(
    ("change", "unet", "message"),
    [
        ({"adapter_type": "full_adapter"}, UNET, "of Stable Diffusion 1 or 2"),
        ({"channels": [320, 640, 1280, 1280]}, UNET, "its features are 320 at 1/16, .*; here they go to 32 at 1/16"),
        ({"downscale_factor": 8}, UNET, "made for another model"),
        ({"in_channels": 4}, UNET, "4 channels, not 1 or 3"),
        ({}, replace(UNET, mid=None), "made for another model"),
    ],
)
def test_folders_that_do_not_fit(
    adapter: Any, tmp_path: Path, change: dict[str, Any], unet: UNetConfig, message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    save_file(adapter, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_control(tmp_path, unet, {})


@pytest.mark.parametrize(
    ("part", "width", "strides", "message"),
    [
        # as Stable Diffusion 1 has them
        (
            "input_blocks_1_1",
            64,
            (4, 2),
            "such as Stable Diffusion 1: this one has no layer for lllite_unet_input_blocks_1_1_tr",
        ),
        ("input_blocks_4_1", 32, (4, 4), "attn1_to_k is 32 wide, not 64"),
        ("input_blocks_4_1", 64, (4, 2), "its picture is 1/8 as large, not 1/16"),
        ("middle_block_1", 128, (4, 4), "its picture is 1/16 as large, not 1/32"),
    ],
)
def test_lllites_that_do_not_fit(tmp_path: Path, part: str, width: int, strides: Any, message: str) -> None:
    config = LLLiteConfig(tuple(lllite_modules({part: (width, strides)}).values()))
    save_file(random_tensors(lllite_shapes(config, np.float32), 0), tmp_path / "lite.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_control(tmp_path / "lite.safetensors", UNET, {})


@pytest.mark.parametrize(
    ("write", "lacking"),
    [
        (write_t2i_adapter, "adapter.body.0.resnets.0.block2.bias"),
        (write_lllite, "middle_block_1_.*attn2_to_q.up.0.bias"),
    ],
)
def test_a_missing_tensor_is_named(small: Any, tmp_path: Path, write: Any, lacking: str) -> None:
    own = load_file(write(tmp_path / "whole.safetensors", small[0].model, 0))
    (key,) = [key for key in own if lacking.rpartition(".*")[2] in key and lacking.partition("_.*")[0] in key]
    del own[key]
    save_file(own, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=rf"part\.safetensors: controlnet lacks {key}"):
        small[0].add_control("part", tmp_path / "part.safetensors")


def control_lora(model: Any, rank: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A Control-LoRA for a model, and the changes that its factors are, by the weights' names in diffusers."""
    rng = np.random.default_rng(1)
    whole, light, changed = tensors(model, 1), {"lora_controlnet": np.zeros(0, np.float32)}, {}
    (names,) = [in_original_names({key: np.asarray(key) for key in whole}, model)]
    for name, key in ((name.removeprefix("control_model."), str(key)) for name, key in names.items()):
        own = whole[key]
        if not key.startswith("controlnet_") and own.ndim > 1:
            down = (0.1 * rng.standard_normal((rank, *own.shape[1:]))).astype(np.float16)
            up = rng.standard_normal((own.shape[0], rank, *[1] * (own.ndim - 2))).astype(np.float16)
            stem = name.removesuffix(".weight")
            light |= {f"{stem}.up": up, f"{stem}.down": down}
            product = up.reshape(len(up), -1).astype(np.float32) @ down.reshape(rank, -1).astype(np.float32)
            changed[key] = product.reshape(own.shape)
        elif key != "down_blocks.1.resnets.0.norm1.bias":  # what a file lacks is the U-Net's
            light[name] = own
    return light, changed


def test_a_control_lora_is_a_controlnet(small: Any, tmp_path: Path) -> None:
    pipe = small[0]
    light, changed = control_lora(pipe.model, 3)
    save_file(light, tmp_path / "light.safetensors")
    base = pipe.checkpoint.tensors["unet"]
    opened = open_control(tmp_path / "light.safetensors", pipe.model.unet, base)
    own = tensors(pipe.model, 1)
    assert set(opened.tensors) == set(own)
    for key, tensor in opened.tensors.items():
        want = own[key]
        if key in changed:
            want = base[key].read() + changed[key]
        elif key == "down_blocks.1.resnets.0.norm1.bias":
            want = base[key].read()
        np.testing.assert_allclose(tensor.read(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: without(own, "label_emb"), "a Control-LoRA of Stable Diffusion 1 or 2"),
        (lambda own: without(own, "input_blocks.0.0.down"), r"input_blocks\.0\.0\.up has no down"),
        (
            lambda own: own | {"middle_block.1.proj_in.down": np.zeros((3, 8), np.float16)},
            r"made for another model: middle_block\.1\.proj_in\.up is \(64, 8\), here \(64, 64\)",
        ),
    ],
)
def test_control_loras_that_are_refused(small: Any, tmp_path: Path, change: Any, message: str) -> None:
    pipe = small[0]
    save_file(change(control_lora(pipe.model, 3)[0]), tmp_path / "light.safetensors")
    with pytest.raises(CheckpointError, match=message) as raised:
        open_control(tmp_path / "light.safetensors", pipe.model.unet, pipe.checkpoint.tensors["unet"])
    assert "\n" not in str(raised.value)


def without(own: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in own.items() if part not in key}
