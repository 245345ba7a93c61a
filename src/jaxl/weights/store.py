"""Tensors in a safetensors file: the header is read and checked at once, a tensor's bytes only when asked for.

The format is eight bytes with the header's length (little endian), the header in JSON, then the tensors end to end
(https://huggingface.co/docs/safetensors). Nothing in it is executed, and everything it promises is checked here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxl.errors import CheckpointError

DTYPES: Mapping[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

# other things that are found under a .safetensors name, by their first bytes in lower case
_PICKLE = "which can run code and which jaxl does not open; convert it to safetensors"
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for; run: git lfs pull",
    b"<": "an HTML page, not weights: the download ended at a login or an error; fetch the file itself",
    b'{"': "a text in JSON, not weights: the download ended in an error; fetch the file itself",
    b"pk\x03\x04": f"not safetensors but a file of torch.save or a ZIP archive, {_PICKLE}",
    b"\x80": f"not safetensors but a pickle, {_PICKLE}",
    b"\x89png": "a picture (PNG), not weights",
    b"riff": "a picture (WebP), not weights",
    b"gguf": "not safetensors but GGUF, which jaxl does not read",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file, not read yet.

    `key` is its name in the file, `shape` its shape as torch sees it, `offset` the absolute position of its first byte.
    `transposed` (2-D only) means that the bytes hold the transpose of `shape`. `scale`, one number or one for each row
    in the file, multiplies the stored numbers.
    """

    key: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    transposed: bool = False
    scale: Tensor | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> Tensor:  # noqa: N802 (numpy's name)
        """Its 2-D transpose, without reading."""
        if len(self.shape) != 2:
            raise ValueError(f"{self.key}: only a matrix has a transpose, not {self.shape}")
        return dataclasses.replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the slice `[start:stop]` of the leading axis, without reading."""
        if self.transposed or not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.key}: no rows {start} to {stop} in {self.shape}")
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        scale = self.scale.rows(start, stop) if self.scale is not None and self.scale.size > 1 else self.scale
        return dataclasses.replace(
            self, shape=(stop - start, *self.shape[1:]), offset=self.offset + start * row_bytes, scale=scale
        )

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        """Return the same bytes in another shape of the same size, without reading."""
        by_row = self.scale is not None and self.scale.size > 1 and shape[:1] != self.shape[:1]
        if self.transposed or by_row or math.prod(shape) != self.size:
            raise ValueError(f"{self.key}: cannot view {self.shape} as {shape}")
        return dataclasses.replace(self, shape=shape)

    def scaled(self, scale: Tensor) -> Tensor:
        """Return the tensor times one number, or one per row, without reading. Raises ValueError for another shape."""
        if self.transposed or self.scale is not None or scale.size not in (1, *self.shape[:1]):
            raise ValueError(f"{self.key}: {scale.shape} does not scale {self.shape}")
        return dataclasses.replace(self, scale=scale.reshape((scale.size,)))

    def read(self) -> np.ndarray:
        """Map the tensor read-only from the file; its pages are given back when the array is dropped.

        With a scale it is a new array in float32.
        """
        stored = self.shape[::-1] if self.transposed else self.shape
        array = self._map().reshape(stored) if self.size else np.empty(stored, self.dtype)
        if self.scale is not None:
            rows = self.scale.read().astype(np.float32).reshape(-1, *(1,) * (array.ndim - 1))
            array = array.astype(np.float32) * (rows if array.ndim else rows[0])
        return array.T if self.transposed else array

    def _map(self) -> np.ndarray:
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with self.file.open("rb") as file:
                pages = mmap.mmap(
                    file.fileno(), self.offset - start + self.nbytes, access=mmap.ACCESS_READ, offset=start
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file}: cannot read {self.key} ({error})") from error
        if hasattr(pages, "madvise"):  # reading all at once is faster than page by page
            pages.madvise(mmap.MADV_WILLNEED)
        return np.frombuffer(pages, self.dtype, self.size, self.offset - start)


def read_header(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file by name, none of them read.

    Raises CheckpointError, naming the file, if it is not safetensors, is truncated, names a key twice, has a dtype that
    jaxl does not read, or if sizes and positions disagree.
    """
    entries, data_start, data_bytes = _header(file)
    tensors = {key: _tensor(file, key, entry, data_start) for key, entry in entries.items() if key != "__metadata__"}
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            raise CheckpointError(f"{file}: corrupt safetensors header, {tensor.key} overlaps or leaves a gap")
        position += tensor.nbytes
    promised = position - data_start
    if promised > data_bytes:
        raise CheckpointError(
            f"{file}: truncated, {data_bytes} of {promised} bytes of tensors are there; fetch it again"
        )
    if promised < data_bytes:
        raise CheckpointError(f"{file}: corrupt safetensors file, {data_bytes - promised} bytes after the last tensor")
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """Read the free-text `__metadata__` of a safetensors file, empty if it has none. Raises CheckpointError."""
    metadata = _header(file)[0].get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: corrupt safetensors header, __metadata__ is not a table of texts")
    return metadata


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object. Raises CheckpointError naming the file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    return _parse_object(file, text)


def write_safetensors(
    file: Path,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file tensor by tensor, in the order of `entries`; `read(key)` returns each array.

    `entries` maps a key to the dtype and shape that its array will have. The metadata has `"format": "pt"`, as torch
    users expect, and what is given. An OSError (a full disk) passes through.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for key, (dtype, shape) in entries.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for key, (dtype, shape) in entries.items():
            array = read(key)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{key}: {array.dtype}{array.shape} was announced as {dtype}{shape}")
            # bfloat16 has no buffer protocol, bytes have
            out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return the parsed header, where the tensors start, and how many bytes follow."""
    try:
        with file.open("rb") as stream:
            total = file.stat().st_size
            return _read_header(file, stream, total)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


def _read_header(file: Path, stream: BinaryIO, total: int) -> tuple[dict[str, Any], int, int]:
    prefix = stream.read(8)
    if not prefix:
        raise CheckpointError(f"{file}: empty; fetch it again")
    if len(prefix) < 8:
        raise CheckpointError(f"{file}: truncated, {total} bytes are no safetensors file; fetch it again")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        begin = (prefix + stream.read(64)).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        known = next((told for first, told in OTHERS.items() if begin.startswith(first)), None)
        raise CheckpointError(f"{file}: {known or f'not a safetensors file (a header of {length} bytes); convert it'}")
    raw = stream.read(length)
    if len(raw) < length:
        raise CheckpointError(f"{file}: truncated within the header, {total} bytes are there; fetch it again")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: corrupt safetensors header, not UTF-8") from error
    return _parse_object(file, text), 8 + length, total - 8 - length


def _parse_object(file: Path, text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{file}: duplicate key {twice!r}")
        return table

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: corrupt, not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{file}: corrupt, a JSON object was expected")
    return parsed


def _tensor(file: Path, key: str, entry: Any, data_start: int) -> Tensor:
    if not key.isprintable():  # it will be part of one-line messages
        raise CheckpointError(f"{file}: corrupt safetensors header at {key!r}")
    try:
        name, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        dtype = DTYPES.get(name)
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: corrupt safetensors header at {key}") from error
    if dtype is None:
        known = ", ".join(DTYPES)
        raise CheckpointError(f"{file}: {key} has dtype {name!r}, which jaxl does not read; known: {known}")
    if not whole or end - start != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{file}: corrupt safetensors header at {key}")
    return Tensor(key=key, file=file, dtype=dtype, shape=shape, offset=data_start + start)
