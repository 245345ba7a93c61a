"""The file that a name means; those on a hub are in tests/weights/test_hub.py."""

from pathlib import Path
from typing import Any

import pytest

from jaxl.errors import CheckpointError
from jaxl.weights.adapters.source import open_adapter


def refusal(name: Path | str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_adapter(name, **options)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    return message.removeprefix(f"{name}: ")


def test_files_and_folders(tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    assert refusal(one) == "no such file or folder; give one, or a hub id (owner/name)"
    assert refusal(tmp_path) == "no .safetensors file is in it"
    one.touch()
    assert open_adapter(one) == open_adapter(str(tmp_path)) == one
    (tmp_path / "x.pt").touch()
    assert open_adapter(tmp_path) == one
    (tmp_path / "two.safetensors").touch()
    listed = "has 2 .safetensors; name one as `weight_name`: one.safetensors, two.safetensors"
    assert refusal(tmp_path) == listed
    assert open_adapter(tmp_path, weight_name="two.safetensors") == tmp_path / "two.safetensors"
    assert refusal(tmp_path, weight_name="three.safetensors") == "there is no three.safetensors in it"
    named = tmp_path / "pytorch_lora_weights.safetensors"
    named.touch()
    assert open_adapter(tmp_path) == named


def test_pickles(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02}.")
    assert refusal(path) == "jaxl does not open pickles, which can run code; convert it to safetensors"
    assert "does not open pickles" in refusal(tmp_path / "y.ckpt")
