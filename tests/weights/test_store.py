"""Safetensors files: what is read, what is written, and everything that is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file

from jaxl.errors import CheckpointError
from jaxl.weights.store import DTYPES, read_header, read_json, read_metadata, write_safetensors

F32 = np.dtype(np.float32)
NUMPY = (torch.float16, torch.float32, torch.float64, torch.int64, torch.bool)  # dtypes of PyTorch that it has itself


def raw(file: Path, header: Any, data: bytes = b"") -> Path:
    """A file with that header, whether it makes sense or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert message.isprintable()  # one line
    return message.removeprefix(f"{file}: ")


def test_tensors_that_torch_wrote(tmp_path: Path) -> None:
    tensors = {
        "bfloat16": torch.randn(3, 5, dtype=torch.bfloat16),
        "float16": torch.randn(2, 3, 4, 5, dtype=torch.float16),
        "float32": torch.randn(7),
        "float64": torch.randn(1, 2, dtype=torch.float64),
        "int64": torch.arange(6).reshape(2, 3),
        "bool": torch.tensor([True, False]),
        "float8_e4m3fn": torch.randn(3, 5).to(torch.float8_e4m3fn),
        "float8_e5m2": torch.randn(3, 5).to(torch.float8_e5m2),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
    }
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "title": "a model"})
    found = read_header(file)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        array = found[key].read()
        assert array.shape == found[key].shape == tuple(tensor.shape)
        assert found[key].size == tensor.numel()
        assert found[key].nbytes == tensor.nbytes
        wanted = tensor.float().numpy().astype(array.dtype) if tensor.dtype not in NUMPY else tensor.numpy()
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)
        assert not array.flags.writeable or not array.size
    assert read_metadata(file) == {"format": "pt", "title": "a model"}


def test_views_of_a_tensor(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    whole = np.arange(24, dtype=np.float32).reshape(6, 4)
    safetensors.numpy.save_file({"before": np.ones(3, np.float32), "x": whole}, file)
    x = read_header(file)["x"]
    np.testing.assert_array_equal(x.T.read(), whole.T)
    np.testing.assert_array_equal(x.T.T.read(), whole)
    np.testing.assert_array_equal(x.rows(2, 5).read(), whole[2:5])
    np.testing.assert_array_equal(x.rows(2, 5).T.read(), whole[2:5].T)
    np.testing.assert_array_equal(x.reshape((2, 3, 4)).rows(1, 2).read(), whole.reshape(2, 3, 4)[1:])
    for wrong in (lambda: x.rows(2, 7), lambda: x.T.rows(0, 1), lambda: x.reshape((5, 5)), lambda: x.T.reshape((24,))):
        with pytest.raises(ValueError, match=r"^x: "):
            wrong()
    with pytest.raises(ValueError, match="only a matrix"):
        _ = x.reshape((2, 3, 4)).T


def test_scaled_tensors(tmp_path: Path) -> None:
    """Eight bits and a scale, of the whole or of each row: the product is in float32, in every view."""
    file = tmp_path / "model.safetensors"
    stored = torch.randn(6, 4).to(torch.float8_e4m3fn)
    scales = {"one": torch.tensor(300.0), "rows": torch.rand(6), "column": torch.rand(6, 1)}
    save_file({"x": stored, **scales}, file)
    found = read_header(file)
    for name, scale in scales.items():
        x = found["x"].scaled(found[name])
        wanted = stored.float().numpy() * scale.numpy().reshape(-1, 1)
        assert (x.dtype, x.read().dtype) == (found["x"].dtype, np.float32)
        np.testing.assert_array_equal(x.read(), wanted)
        np.testing.assert_array_equal(x.T.read(), wanted.T)
        np.testing.assert_array_equal(x.rows(2, 5).read(), wanted[2:5])
        np.testing.assert_array_equal(x.reshape((6, 2, 2)).rows(1, 2).read(), wanted.reshape(6, 2, 2)[1:2])
    for wrong in (lambda: found["x"].scaled(found["x"]), lambda: x.scaled(found["one"]), lambda: x.reshape((4, 6))):
        with pytest.raises(ValueError, match=r"^x: "):
            wrong()


def test_a_written_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    arrays |= {"none": np.zeros((0, 2), np.float32), "turned": np.arange(6.0).reshape(2, 3).T}
    file = tmp_path / "model.safetensors"
    read: list[str] = []

    def array(key: str) -> np.ndarray:
        read.append(key)
        return arrays[key]

    write_safetensors(file, {key: (value.dtype, value.shape) for key, value in arrays.items()}, array)
    assert read == list(arrays)
    assert read_metadata(file) == {"format": "pt"}
    with safetensors.safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    loaded = load_file(file)
    assert loaded.keys() == arrays.keys()
    for key, tensor in read_header(file).items():
        assert tensor.dtype == arrays[key].dtype
        assert str(loaded[key].dtype) == f"torch.{tensor.dtype.name}"
        assert loaded[key].shape == arrays[key].shape
        assert loaded[key].reshape(-1).view(torch.uint8).numpy().tobytes() == arrays[key].tobytes()
        np.testing.assert_array_equal(tensor.read(), arrays[key])
    assert min(tensor.offset for tensor in read_header(file).values()) % 8 == 0


def test_writing_what_was_not_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^x: float32\(3,\) was announced as float32\(2,\)"):
        write_safetensors(tmp_path / "m.safetensors", {"x": (F32, (2,))}, lambda _: np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; fetch it again"),
        (b"\x10\0\0", "truncated, 3 bytes"),
        (struct.pack("<Q", 100) + b'{"a"', "truncated within the header, 12 bytes"),
        (b"\x80\x02}q\x00X\x05\x00hello", "not safetensors but a pickle, which can run code"),
        (b"<!DOCTYPE html>", "an HTML page, not weights: the download ended at a login or an error"),
        (b"\r\n\r\n  <html lang=en>", "an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>", "an HTML page"),
        (b'{"error": "Invalid username or password."}', "a text in JSON, not weights"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "not safetensors but GGUF"),
        (b"garbage " * 9, "not a safetensors file (a header of"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer, not the file"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert refusal(file).startswith(message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "corrupt, not valid JSON"),
        (b'{"a": ', "corrupt, not valid JSON"),
        (b"\xff\xfe", "corrupt safetensors header, not UTF-8"),
        (b"[" * 100_000, "corrupt, not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "corrupt, not valid JSON"),
        ([], "corrupt, a JSON object was expected"),
        (b'{"a": 1, "a": 1}', "duplicate key 'a'"),
        (b'{"a": {"dtype": "U8", "dtype": "U8"}}', "duplicate key 'dtype'"),
        ({"a": 1}, "corrupt safetensors header at a"),
        ({"a": []}, "corrupt safetensors header at a"),
        ({"a": {"dtype": "U8", "shape": [8]}}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, shape=[8.0])}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, shape=[True, 8])}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, shape=[-2, -4])}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, shape=[7])}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, shape="8")}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, dtype=["U8"])}, "corrupt safetensors header at a"),
        ({"a": entry(0, 8, dtype="F8_E8M0")}, "a has dtype 'F8_E8M0', which jaxl does not read; known: BF16, "),
        ({"a\nb": entry(0, 8)}, r"corrupt safetensors header at 'a\nb'"),
        ({"a": entry(0, 8), "b": entry(4, 8)}, "corrupt safetensors header, b overlaps or leaves a gap"),
        ({"a": entry(0, 4), "b": entry(5, 8)}, "corrupt safetensors header, b overlaps or leaves a gap"),
        ({"a": entry(1, 8)}, "corrupt safetensors header, a overlaps or leaves a gap"),
        ({"a": entry(0, 4), "b": entry(4, 9)}, "truncated, 8 of 9 bytes of tensors are there; fetch it again"),
        ({"a": entry(0, 6)}, "corrupt safetensors file, 2 bytes after the last tensor"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Any, message: str) -> None:
    assert refusal(raw(tmp_path / "model.safetensors", header, bytes(8))).startswith(message)


def test_a_torch_file_under_another_name(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    torch.save({"x": torch.zeros(2)}, file)
    assert refusal(file).startswith("not safetensors but a file of torch.save or a ZIP archive")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.safetensors") == "no such file"
    assert refusal(tmp_path).startswith("cannot be read (")


def test_a_tensor_whose_file_is_gone(tmp_path: Path) -> None:
    file = raw(tmp_path / "model.safetensors", {"a": entry(0, 8)}, bytes(8))
    tensor = read_header(file)["a"]
    file.unlink()
    with pytest.raises(CheckpointError, match=f"^{file}: cannot read a \\("):
        tensor.read()


def test_damaged_metadata(tmp_path: Path) -> None:
    assert read_metadata(raw(tmp_path / "none", {})) == {}
    for metadata in (["format"], {"format": 1}, "pt"):
        file = raw(tmp_path / "model.safetensors", {"__metadata__": metadata})
        with pytest.raises(CheckpointError, match=f"^{file}: corrupt safetensors header, __metadata__"):
            read_metadata(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"{", "corrupt, not valid JSON"),
        (b"\xff", "cannot be read"),
        (b"[]", "corrupt, a JSON object was expected"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
    ],
)
def test_damaged_json(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{file}: {message}") as caught:
        read_json(file)
    assert str(caught.value).isprintable()


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)  # every one, NaNs included
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"x": (values.dtype, values.shape)}, lambda _: values)
    np.testing.assert_array_equal(read_header(file)["x"].read().view(np.uint16), values.view(np.uint16))
