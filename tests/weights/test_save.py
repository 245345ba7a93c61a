"""A checkpoint on its way to a folder: whole, or nothing at all."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxl.errors import OutputError
from jaxl.run.sharding import batch_sharding, make_mesh
from jaxl.weights.layout import unflatten
from jaxl.weights.save import save_checkpoint
from jaxl.weights.source import open_checkpoint

CONFIGS = {"model_index": {"b": 1, "a": [1, 2]}, "scheduler": {"steps": 3}, "unet": {"width": 8}}
PARAMS = {
    "unet": unflatten(
        {
            "conv.weight": jnp.arange(3 * 3 * 2 * 20, dtype=jnp.float32).reshape(3, 3, 2, 20),
            "linear.weight": jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4),
            "linear.bias": jnp.zeros(4, jnp.float16),
        }
    )
}


def write_text(path: Path) -> None:
    path.mkdir()
    (path / "vocab.json").write_text("{}")


def save(folder: Path, tokenizer: Callable[[Path], None] = write_text) -> None:
    save_checkpoint(folder, CONFIGS, PARAMS, {"tokenizer_2": tokenizer})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_layout_and_dtypes(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    save(folder)
    assert files(tmp_path / "new") == [
        "model/model_index.json",
        "model/scheduler/scheduler_config.json",
        "model/tokenizer_2/vocab.json",
        "model/unet/config.json",
        "model/unet/diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((folder / "model_index.json").read_text()) == CONFIGS["model_index"]
    assert json.loads((folder / "unet" / "config.json").read_text()) == CONFIGS["unet"]
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    unet = PARAMS["unet"]
    np.testing.assert_array_equal(tensors["conv.weight"], np.transpose(unet["conv"]["weight"], (3, 2, 0, 1)))
    np.testing.assert_array_equal(tensors["linear.weight"], np.transpose(unet["linear"]["weight"]))
    assert {key: str(tensor.dtype) for key, tensor in tensors.items()} == {
        "conv.weight": "float32",
        "linear.weight": "bfloat16",
        "linear.bias": "float16",
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_round_trip(tiny: tuple[Any, Mapping[str, Any]], tmp_path: Path) -> None:
    pipe, params = tiny
    original = open_checkpoint("tiny")
    tokenizers = {name.replace("text_encoder", "tokenizer"): t.save for name, t in pipe.tokenizers.items()}
    save_checkpoint(tmp_path / "saved", original.configs, params, tokenizers)
    saved = open_checkpoint(tmp_path / "saved")
    assert saved.configs == original.configs
    assert saved.tokenizers.keys() == original.tokenizers.keys()
    assert saved.tensors.keys() == original.tensors.keys()
    for component, tensors in original.tensors.items():
        assert saved.tensors[component].keys() == tensors.keys()
        for key, tensor in tensors.items():
            again = saved.tensors[component][key]
            assert again.dtype == np.float32
            np.testing.assert_array_equal(again.read(), tensor.read().astype(np.float32), err_msg=key)


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tmp_path.stat()
    monkeypatch.chdir(tmp_path)
    save(Path())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_index.json", "scheduler", "tokenizer_2", "unet"]
    assert tmp_path.stat().st_ino == before.st_ino
    monkeypatch.chdir(tmp_path / "unet")
    save(Path("../relative/model"))
    assert (tmp_path / "relative" / "model" / "model_index.json").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder)
    before = files(tmp_path)
    with pytest.raises(OutputError, match=f"^{folder}: exists already; choose another folder, or empty it$"):
        save(folder)
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(OutputError, match=f"^{file}: exists already"):
        save(file)
    assert file.read_text() == "text"
    assert files(tmp_path) == sorted([*before, "file"])


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    folder = tmp_path / "file" / "model"
    with pytest.raises(OutputError, match=f"^{folder}: cannot be written \\(Not a directory\\)$"):
        save(folder)
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), OutputError, ": cannot be written (No space left on device)"),
        (OSError("broken"), OutputError, ": cannot be written (broken)"),
        (OutputError("tokenizer_2: cannot be written"), OutputError, "tokenizer_2: cannot be written"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["full disk", "other failure", "already explained", "interrupted"],
)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, error: BaseException, raised: type[BaseException], message: str
) -> None:
    def fail(path: Path) -> None:
        write_text(path)
        raise error

    for folder in (tmp_path / "new" / "model", tmp_path):
        with pytest.raises(raised) as caught:
            save(folder, fail)
        assert str(caught.value).endswith(message)
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """The system refuses the tensors' bytes, as it does on a full disk."""
    program = f"""
import resource, pathlib
import jax.numpy as jnp
from jaxl.errors import OutputError
from jaxl.run.sharding import batch_sharding, make_mesh
from jaxl.weights.save import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
configs = {{"model_index": {{}}, "scheduler": {{}}, "vae": {{}}}}
try:
    save_checkpoint(pathlib.Path({str(tmp_path / "model")!r}), configs, {{"vae": {{"x": jnp.zeros(100_000)}}}}, {{}})
except OutputError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'model'}: cannot be written (File too large)\n"
    assert list(tmp_path.iterdir()) == []


def test_no_copy_of_split_parameters_stays_on_the_host(tmp_path: Path) -> None:
    """jax keeps what it gathers for NumPy in the array that was read; over a whole model that is a second copy."""
    split = batch_sharding(make_mesh(jax.devices()))
    leaf = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), split)
    save_checkpoint(tmp_path / "model", CONFIGS, {"unet": {"linear": {"weight": leaf}}}, {})
    assert leaf._npy_value is None
    written = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    np.testing.assert_array_equal(written["linear.weight"], np.arange(64.0).reshape(8, 8).T)
