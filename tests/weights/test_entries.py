"""What is written of a model: the dtypes of tensors, and adapters in them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from adapters import adapter
from safetensors.numpy import save_file

from jaxl.bench.measure import compilations
from jaxl.errors import CheckpointError
from jaxl.weights.adapters.strength import Strength
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.entries import entries_of_checkpoint, entries_of_params
from jaxl.weights.store import read_header

KEY = "linear.weight"


def of_file(folder: Path, array: np.ndarray) -> tuple[Checkpoint, Any]:
    """A checkpoint of one tensor, and its shapes."""
    save_file({KEY: array}, folder / "unet.safetensors")
    tensors = {"unet": read_header(folder / "unet.safetensors")}
    leaf = jnp.zeros(array.shape[::-1])
    return Checkpoint("a model", {}, tensors, {}), {"unet": {"linear": {"weight": leaf}}}


@pytest.mark.parametrize(
    ("own", "dtype", "wanted"),
    [
        (np.float32, None, np.float32),
        (np.float64, None, np.float32),
        (ml_dtypes.bfloat16, None, ml_dtypes.bfloat16),
        (ml_dtypes.float8_e4m3fn, None, np.float16),
        (ml_dtypes.float8_e4m3fn, "float32", np.float32),
        (np.float32, "float16", np.float16),
        (np.float16, "bfloat16", ml_dtypes.bfloat16),
    ],
)
def test_dtypes_of_tensors(tmp_path: Path, own: Any, dtype: Any, wanted: Any) -> None:
    array = np.linspace(-2, 2, 12).reshape(3, 4).astype(own)
    entry = entries_of_checkpoint(*of_file(tmp_path, array), dtype=dtype)["unet"][KEY]
    assert entry.dtype == wanted
    np.testing.assert_array_equal(entry.read(), array.astype(wanted), strict=True)
    (leaf,) = entries_of_params({"unet": {"linear": {"weight": jnp.asarray(array.T)}}}, wanted)["unet"].values()
    np.testing.assert_array_equal(leaf.read(), array.astype(wanted), strict=True)


@pytest.mark.parametrize("split", [None, "data"])
def test_parameters_are_read_without_compiling(split: str | None) -> None:
    """And they keep nothing of what was gathered from their devices."""
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    array = np.arange(30, dtype=np.float32).reshape(6, 5)
    leaf = jax.device_put(array, jax.NamedSharding(mesh, jax.P(split)))
    with compilations() as compiled:
        (entry,) = entries_of_params({"unet": {"linear": {"weight": leaf}}})["unet"].values()
        np.testing.assert_array_equal(entry.read(), array.T)
    assert not compiled
    assert leaf._npy_value is None  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_beyond_the_range(tmp_path: Path) -> None:
    array = np.full((3, 4), 1e6, np.float32)
    message = f"unet: {KEY} has numbers beyond the range of float16"
    for entries in (
        entries_of_checkpoint(*of_file(tmp_path, array), dtype="float16"),
        entries_of_params({"unet": {"linear": {"weight": jnp.asarray(array.T)}}}, "float16"),
    ):
        with pytest.raises(CheckpointError, match=f"{message}$"):
            entries["unet"][KEY].read()


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    checkpoint, shapes = of_file(tmp_path, np.zeros((3, 4), np.float32))
    with pytest.raises(CheckpointError, match=r"^a model: unet has unknown tensors: linear\.weight$"):
        entries_of_checkpoint(checkpoint, {"unet": {}})
    with pytest.raises(CheckpointError, match=r"^a model: unet lacks linear\.bias$"):
        entries_of_checkpoint(checkpoint, {"unet": {"linear": {**shapes["unet"]["linear"], "bias": jnp.zeros(3)}}})


def test_an_adapter_is_rounded_once(small: Any) -> None:
    """In half precision the result is nearer to the exact weight than any of its neighbours."""
    pipe, _ = small
    worn = adapter(pipe.model, "low", 1, 4, within="attentions.0.proj_in", components=("unet",))
    (key,) = [key for key in worn.changes["unet"] if key.startswith("mid_block")]
    own = entries_of_checkpoint(pipe.checkpoint, pipe.model.shapes())["unet"]
    found = entries_of_checkpoint(pipe.checkpoint, pipe.model.shapes(), ((worn, Strength(0.5)),), "float16")["unet"]
    exact = worn.changes["unet"][key].merged(own[key].read(), 0.5)
    assert np.abs(exact - own[key].read()).max() > 0.01
    np.testing.assert_array_equal(found[key].read(), exact.astype(np.float16))
    np.testing.assert_array_equal(found["conv_in.weight"].read(), own["conv_in.weight"].read().astype(np.float16))
