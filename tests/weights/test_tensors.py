"""A file's tensors without what the program added that wrote it: above all, weights in eight bits with their scales."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxl.errors import CheckpointError
from jaxl.weights.store import write_safetensors
from jaxl.weights.tensors import read_tensors, stored_as

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
SCALE = np.float32(0.3)
ROWS = np.linspace(0.1, 0.5, 6, dtype=np.float32)[:, None]
TABLE = "_quantization_metadata"


def mark(**said: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def numbers(dtype: Any) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((6, 4)) * 40).astype(dtype)


def write(folder: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    file = folder / "model.safetensors"
    write_safetensors(file, {key: (a.dtype, a.shape) for key, a in arrays.items()}, arrays.__getitem__, metadata)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert message.isprintable()
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype", "scale"),
    [("float8_e4m3fn", E4M3, SCALE), ("float8_e5m2", E5M2, SCALE), ("int8_tensorwise", np.int8, ROWS)],
)
@pytest.mark.parametrize("way", ["beside it", "in the table", "in the table, without the prefix"])
def test_layers_that_comfyui_marks(
    tmp_path: Path, name: str, dtype: Any, scale: np.ndarray, as_bytes: bool, way: str
) -> None:
    """The mark says what the numbers are, which may be stored as plain bytes; their scale multiplies them."""
    layer, stored = "model.diffusion_model.out.0", numbers(dtype)
    arrays = {f"{layer}.weight": stored.view(np.uint8) if as_bytes else stored, f"{layer}.weight_scale": scale}
    said, metadata = {"format": name, "full_precision_matrix_mult": True}, {}
    if way == "beside it":
        arrays[f"{layer}.comfy_quant"] = mark(**said)
    else:
        named = layer if way == "in the table" else layer.removeprefix("model.diffusion_model.")
        metadata = {TABLE: json.dumps({"format_version": "1.0", "layers": {named: said}})}
    tensors = read_tensors(write(tmp_path, arrays, metadata))
    assert tensors.keys() == {f"{layer}.weight"}
    (weight,) = tensors.values()
    assert stored_as(weight) == f"{np.dtype(dtype).name} with scales"
    np.testing.assert_array_equal(weight.read(), stored.astype(np.float32) * scale)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (mark(format="nvfp4"), "out is stored as nvfp4, which jaxl does not read; get the model in float8_e4m3fn"),
        (mark(format="int8_tensorwise", convrot=True), "int8_tensorwise with its inputs rotated (ConvRot), which jaxl"),
        (mark(group_size=128), "out is stored as None, which"),
        (mark(format="float8_e5m2"), "out.weight is marked as float8_e5m2, but holds float8_e4m3fn"),
        (np.frombuffer(b"{", np.uint8), "out.comfy_quant is damaged, it is no text in JSON"),
        (np.ones(3, np.float32), "out.comfy_quant is damaged"),
    ],
)
def test_marks_that_cannot_be_followed(tmp_path: Path, said: np.ndarray, told: str) -> None:
    """They were once dropped, and the numbers taken for the weight."""
    assert told in refusal(write(tmp_path, {"out.weight": numbers(E4M3), "out.comfy_quant": said}))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("[", f"{TABLE} is damaged, it is no text in JSON"),
        ("{}", f"{TABLE} is damaged, it has no table of layers"),
        ('{"layers": {"out": 1}}', f"{TABLE} is damaged"),
        (
            '{"layers": {"in": {"format": "float8_e4m3fn"}}}',
            "in.weight, which is marked as float8_e4m3fn",
        ),
        ('{"layers": {"out": {"format": "int8_blockwise"}}}', "out is stored as int8_blockwise, which jaxl"),
    ],
)
def test_tables_that_cannot_be_followed(tmp_path: Path, table: str, told: str) -> None:
    assert told in refusal(write(tmp_path, {"out.weight": numbers(E4M3)}, {TABLE: table}))
