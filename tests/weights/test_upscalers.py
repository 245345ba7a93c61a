"""Upscalers in files: the ways of naming are one network, configs come from shapes, and others are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upscaler_files import golden, saved, weights_of

from jaxl.errors import CheckpointError
from jaxl.weights.upscalers import open_upscaler

OLD = weights_of(golden("esrgan_4x")[0])  # in the names of ESRGAN's first code
COMPACT = weights_of(golden("compact_4x")[0])
DAT = weights_of(golden("dat_4x")[0])


def in_names(rules: Mapping[str, str]) -> dict[str, np.ndarray]:
    found = {}
    for key, array in OLD.items():
        for old, new in rules.items():
            key = re.sub(rf"^{old}(?=\.)", new, key)
        found[key] = array
    return found


BSRGAN = in_names(
    {
        r"model\.0": "conv_first",
        r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0": r"RRDB_trunk.\1.RDB\2.conv\3",
        r"model\.1\.sub\.2": "trunk_conv",
        r"model\.3": "upconv1",
        r"model\.6": "upconv2",
        r"model\.8": "HRconv",
        r"model\.10": "conv_last",
    }
)
REAL = {
    key.replace("RRDB_trunk", "body")
    .replace("RDB", "rdb")
    .replace("trunk_conv", "conv_body")
    .replace("upconv", "conv_up")
    .replace("HRconv", "conv_hr"): array
    for key, array in BSRGAN.items()
}


@pytest.mark.parametrize(
    ("name", "weights", "outer"),
    [
        ("a.pth", BSRGAN, None),
        ("a.pth", REAL, "params_ema"),
        ("a.safetensors", OLD, None),
        ("a.safetensors", REAL, "params"),
        ("a.pth", {f"module.{key}": array for key, array in REAL.items()}, "state_dict"),
        # by what is in them
        ("a.bin", BSRGAN, None),
    ],
)
def test_names_of_esrgan(tmp_path: Path, name: str, weights: Any, outer: str | None) -> None:
    wanted = open_upscaler(saved(tmp_path / "wanted.pth", OLD))
    opened = open_upscaler(saved(tmp_path / name, weights, outer))
    assert opened.config == wanted.config
    assert opened.tensors.keys() == wanted.tensors.keys() == REAL.keys()
    for key, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor.read(), REAL[key])


def test_the_averaged_weights_are_taken(tmp_path: Path) -> None:
    both = {f"params.{key}": 0 * array for key, array in REAL.items()}
    both |= {f"params_ema.{key}": array for key, array in REAL.items()}
    opened = open_upscaler(saved(tmp_path / "a.safetensors", both))
    assert opened.tensors["conv_last.bias"].read().any()


def without(weights: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key: array for key, array in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"layers.0.residual_group.blocks.0.norm1.weight": np.ones(2)},
            "the upscaler SwinIR or a relative of it; jaxl",
        ),
        ({"layers.0.residual_group.blocks.0.conv_block.cab.0.weight": np.ones(2)}, "the upscaler HAT; jaxl runs"),
        ({"block_1.c1_r.sk.weight": np.ones(2)}, "the upscaler SPAN; jaxl runs the upscalers ESRGAN"),
        (OLD | {"model.1.sub.0.RDB1.conv1x1.weight": np.ones((2, 2, 1, 1))}, "the upscaler ESRGAN\\+"),
        ({"lora_unet_a.lora_down.weight": np.ones(2)}, "a LoRA, which goes on top of a checkpoint; jaxl runs"),
        ({"something.weight": np.ones(2)}, "a file of something.weight; jaxl runs"),
        (without(REAL, "conv_last"), "conv_last.weight is missing"),
        (without(REAL, "body.0."), "an upscaler; jaxl runs the upscalers ESRGAN"),
        (REAL | {"conv_last.weight": np.ones((4, 8, 3, 3))}, "from 3 channels to 4; jaxl runs those of colours"),
        (REAL | {"conv_first.weight": np.ones((8, 27, 3, 3))}, "folds pictures by 3"),
        (REAL | {"conv_first.weight": np.ones((8, 1, 3, 3))}, "from 1 channels to 3"),
        (REAL | {"conv_first.weight": np.ones(8)}, "conv_first.weight has shape \\(8,\\), not 4 axes"),
        (COMPACT | {"body.8.weight": np.ones((2, 8, 3, 3))}, "from 3 channels to 0"),
        (without(COMPACT, "body.4."), "body.4 is missing"),
        (DAT | {"layers.0.blocks.0.attn.attns.0.rpe_biases": np.ones((44, 2))}, "32 places and 44 distances"),
    ],
)
def test_what_is_refused(tmp_path: Path, weights: Any, message: str) -> None:
    file = saved(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_upscaler(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).count(str(file)) == 1


def test_no_weights(tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[[Path], Any], str]] = {
        "gone.pth": (lambda file: None, "no such file"),
        "folder.pth": (Path.mkdir, "cannot be read"),
        "page.pth": (lambda file: file.write_bytes(b"<html>" + bytes(9)), "an HTML page, not weights"),
        "empty.pth": (lambda file: file.write_bytes(b""), "empty"),
    }
    for name, (make, message) in cases.items():
        make(tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            open_upscaler(tmp_path / name)
