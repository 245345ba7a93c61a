"""`jaxl fuse`: models with LoRAs in their weights, as folders and as single files."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from lora_files import write_lora
from small_model import WIDE, write_small_model

import jaxl
from jaxl.cli import run
from jaxl.errors import InputError
from jaxl.weights.layout import flatten, to_torch
from jaxl.weights.source import open_checkpoint
from jaxl.weights.store import read_metadata
from jaxl.weights.winograd import without_winograd


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def agree(path: str, params: Any, dtype: str) -> None:
    """A model's tensors are these parameters in a dtype, bit for bit."""
    for component, tensors in open_checkpoint(path).tensors.items():
        leaves = flatten(without_winograd(params[component]))
        assert tensors.keys() == leaves.keys()
        for key, leaf in leaves.items():
            wanted = np.asarray(leaf).transpose(to_torch(key, leaf.shape)).astype(dtype)
            np.testing.assert_array_equal(tensors[key].read(), wanted, err_msg=f"{component}: {key}", strict=True)


def test_a_folder(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype="float32", mesh=small[0].mesh)
    for seed, name in enumerate(("pencil", "loras/ink")):
        Path(name).parent.mkdir(exist_ok=True)
        write_lora(Path(f"{name}.safetensors"), pipe.model, seed, 4)
        pipe.add_lora(Path(name).name, f"{name}.safetensors")
    flags = ("--lora", "pencil.safetensors:0.8", "--lora", "ink:-0.5", "--lora-dir", "loras")
    assert run(["fuse", pipe.checkpoint.source, *flags, "-o", "new/model"]) == 0
    assert capsys.readouterr() == ("new/model\n", "")
    fused = pipe.fuse(params, {"pencil": 0.8, "ink": -0.5})
    assert np.abs(fused["unet"]["conv_in"]["weight"] - params["unet"]["conv_in"]["weight"]).max() > 0.05
    agree("new/model", fused, "float32")


def test_a_single_file(capsys: pytest.CaptureFixture[str]) -> None:
    write_small_model(Path("model"), WIDE)
    pipe, params = jaxl.from_pretrained("model", dtype="float32", mesh=jaxl.make_mesh(jax.devices()[:1]))
    write_lora(Path("pencil.safetensors"), pipe.model, 0, 4)
    pipe.add_lora("pencil", "pencil.safetensors")
    fused = pipe.fuse(params, {"pencil": 1.0})
    flags = ("--lora", "pencil.safetensors", "--output", "out.safetensors")
    assert run(["fuse", "model", *flags, "--dtype", "bfloat16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": "out.safetensors",
        "model": "model",
        "loras": {"pencil": 1.0},
        "dtype": "bfloat16",
    }
    agree("out.safetensors", fused, "bfloat16")
    assert read_metadata(Path("out.safetensors"))["modelspec.merged_from"] == "model, pencil:1"
    pipe.save_single_file("again.safetensors", fused, dtype="float16")
    agree("again.safetensors", fused, "float16")
    assert {path.name for path in Path().iterdir()} == {
        "again.safetensors",
        "model",
        "out.safetensors",
        "pencil.safetensors",
    }


def test_refusals(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    model = small[0].checkpoint.source
    Path("mine").mkdir()
    Path("mine/file").write_text("")
    Path("mine.safetensors").write_text("")
    for arguments, code, message in (
        (["-o", "mine"], 1, "mine: exists already; choose another folder, or empty it"),
        (["-o", "mine.safetensors"], 1, "mine.safetensors: exists already; choose another name, or remove it"),
        (["-o", "new", "--lora", "none.safetensors"], 2, "none.safetensors: no such file"),
        (["-o", "new", "--lora-dir", "none"], 2, "--lora-dir 'none': there is no such folder"),
        (
            ["-o", "new.safetensors"],
            2,
            "new.safetensors: a single file cannot hold this model (its tokenizer has 2048 words, ",
        ),
        (["-o", "new", "--dtype", "int8"], 2, "'int8' is not one of"),
        ([], 2, "Missing option '--output'"),
    ):
        assert run(["fuse", model, *arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["mine", "mine.safetensors"]


def test_what_the_library_refuses(small: Any) -> None:
    pipe, params = small
    write_lora(Path("pencil.safetensors"), pipe.model, 0, 4)
    pipe.add_lora("pencil", "pencil.safetensors")
    try:
        for loras, message in (
            ({"pen": 1.0}, "loras='pen': no LoRA of this name is loaded; did you mean 'pencil'"),
            ({"pencil": jaxl.Strength(start=0.5)}, "loras='pencil': weights are the same in all steps; leave out"),
        ):
            with pytest.raises(InputError, match=message):
                pipe.fuse(params, loras)
            with pytest.raises(InputError, match=message):
                pipe.save_fused("new", loras)
    finally:
        pipe.loras.remove("pencil")
    with pytest.raises(InputError, match="dtype='int8': give one of float16, bfloat16, float32, or leave it out"):
        pipe.save_fused("new", {}, dtype="int8")
    with pytest.raises(InputError, match="file='new': give a name that ends in"):
        pipe.save_single_file("new", params)
    with pytest.raises(InputError, match=r"folder='new\.safetensors': that is the name of a file"):
        pipe.save_pretrained("new.safetensors", params)
    assert not Path("new").exists()
