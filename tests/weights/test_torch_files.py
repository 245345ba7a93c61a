"""Files of torch.save: tensors are read as torch reads them, and nothing in a file is ever executed."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jaxl.errors import CheckpointError
from jaxl.weights.torch_files import is_torch_file, read_torch_file

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool)
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
# what Python tells an audit hook of when code runs (PEP 578)
EVENTS = ("pickle.find_class", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.")
LOOKED = ("os.listdir", "os.scandir")

_heard: list[str] = []
_listening = False


def _hear(event: str, _: Any) -> None:
    if _listening and event.startswith(EVENTS) and event not in LOOKED:
        _heard.append(event)


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    b"\x80".decode("cp437")  # the names in old archives: Python runs this codec's module when it is first used
    sys.addaudithook(_hear)  # which stays until the process ends


@contextmanager
def nothing_runs() -> Iterator[None]:
    global _listening
    _heard.clear()
    _listening = True
    try:
        yield
    finally:
        _listening = False
    assert _heard == []


def saved(file: Path, value: Any, zipped: bool = True, **how: Any) -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=zipped, **how)
    return file


def state() -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 100, (40,), generator=generator)
    own = OrderedDict({f"a.{i}": numbers[: 3 * (i + 1)].reshape(3, -1).to(dtype) for i, dtype in enumerate(DTYPES)})
    own["part"] = numbers[7:19].reshape(3, 4)  # of a storage that is larger
    own["scalar"], own["none"] = torch.tensor(2.5), torch.zeros(0, 3)
    own["parameter"] = torch.nn.Parameter(torch.ones(1, 2, 1))
    own._metadata = {"": {"version": 1}}  # pyright: ignore[reportAttributeAccessIssue]
    return own


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_as_torch_reads_them(tmp_path: Path, zipped: bool, protocol: int) -> None:
    whole = {"params_ema": state(), "epoch": 3, "optimizer": [{"lr": 1e-4, "moments": torch.ones(3)}], "name": "é"}
    file = saved(tmp_path / "a.pth", whole, zipped, pickle_protocol=protocol)
    assert is_torch_file(file)
    with nothing_runs():
        found = read_torch_file(file)
    assert {key.removeprefix("params_ema.") for key in found} == set(state())
    for key, wanted in state().items():
        got = found[f"params_ema.{key}"].read()
        assert got.shape == tuple(wanted.shape)
        np.testing.assert_array_equal(got.astype(np.float64), wanted.detach().to(torch.float64))


class Code:
    """What pickles itself as a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@FORMATS
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "__builtin__.eval"),
        (exec, ("open('{}', 'w')",), "__builtin__.exec"),
        (torch.load, ("{}",), "torch.serialization.load"),
        (np.frombuffer, (b"1234", "f4"), "numpy.frombuffer"),
    ],
)
def test_code_is_refused_by_name(tmp_path: Path, zipped: bool, function: Any, arguments: Any, name: str) -> None:
    touched = tmp_path / "touched"
    code = Code(function, *(a.format(touched) if isinstance(a, str) else a for a in arguments))
    file = saved(tmp_path / "a.pth", {"weight": torch.ones(2), "code": code}, zipped)
    with nothing_runs(), pytest.raises(CheckpointError, match=rf"names '{name}', and jaxl reads tensors alone"):
        read_torch_file(file)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", "names 'posix.system'"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "names 'posix.system'"),
        (b"\x80\x02(S'true'\niposix\nsystem\n.", "has the opcode STRING"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "has the opcode NEWOBJ"),
        (b"\x80\x02\x8a\x04true.", "is none of torch.save"),
        (b"\x80\x02c" + b"a" * 300 + b"\nb\n.", "names 'aaa"),
        (b"\x80\x02}.", "is none of torch.save"),
        (b"\x80\x02(((((((.", "damaged"),
        (b"\x80\x02" + b"(t" * 300_000 + b".", "has more than 500000 opcodes"),
        (b"\x80", "damaged"),
        (b"PK\x03\x04nothing", "damaged"),
    ],
)
def test_pickles_made_by_hand(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(data)
    with nothing_runs(), pytest.raises(CheckpointError, match=message) as caught:
        read_torch_file(file)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value)) < 500


def test_what_is_not_stored_row_by_row(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pth", {"weight": torch.ones(3, 4).T})
    with pytest.raises(CheckpointError, match="a tensor that is not stored row by row"):
        read_torch_file(file)


def test_a_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match="holds a program"):
        read_torch_file(file)


def test_dictionaries_that_hold_each_other(tmp_path: Path) -> None:
    """A thousand keys for one dictionary, four times over, are a million million; and one may hold itself."""
    inner: dict[str, Any] = {"weight": torch.ones(2)}
    for _ in range(3):
        inner = dict.fromkeys(map(str, range(1000)), inner)
    with pytest.raises(CheckpointError, match="without end"):
        read_torch_file(saved(tmp_path / "a.pth", inner))
    own: dict[str, Any] = {"weight": torch.ones(2)}
    own["own"] = own
    assert len(read_torch_file(saved(tmp_path / "b.pth", own))) == 5


def test_tensors_that_reach_beyond_their_storage(tmp_path: Path) -> None:
    """A pickle may say anything of its storages, which hold 4 elements here."""

    class Rebuilt:
        def __init__(self, *arguments: Any):
            self.arguments = arguments

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, self.arguments

    def written(offset: Any, shape: Any, stride: Any, elements: Any) -> Path:
        stream = io.BytesIO()

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: Any) -> Any:
                return ("storage", torch.FloatStorage, "0", "cpu", elements) if value == "the storage" else None

        made = Rebuilt("the storage", offset, shape, stride, False, OrderedDict())
        Pickler(stream, 2).dump({"weight": made})
        file = tmp_path / "a.pth"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", stream.getvalue())
            archive.writestr("a/data/0", bytes(16))
        return file

    assert read_torch_file(written(0, (2, 2), (2, 1), 4))["weight"].read().tolist() == [[0, 0], [0, 0]]
    wrong = [(0, (5,), (1,), 4), (3, (2,), (1,), 4), (0, (5,), (1,), 5), (-1, (2,), (1,), 4), (0, (-2,), (1,), 4)]
    wrong += [(0, (2,), (1, 1), 4), (0, (2.0,), (1,), 4), (True, (2,), (1,), 4), (0, (2**62, 4), (4, 1), 4)]
    for case in wrong:
        with pytest.raises(CheckpointError, match=r"damaged|truncated"):
            read_torch_file(written(*case))


@FORMATS
def test_mutated_files_are_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    """Whatever bytes are changed, cut or repeated: tensors within the file, or one line."""
    whole = saved(tmp_path / "whole.pth", {"params": state(), "epoch": 1}, zipped).read_bytes()
    random, file, refused = np.random.default_rng(0), tmp_path / "a.pth", 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            at, kind = int(random.integers(len(data))), random.integers(4)
            if kind < 2:
                data[at] = int(random.integers(256))
            elif kind == 2:
                del data[at : at + int(random.integers(1, 64))]
            else:
                data[at:at] = data[int(random.integers(len(data))) :][: int(random.integers(1, 64))]
        file.write_bytes(data)
        with nothing_runs():
            try:
                found = read_torch_file(file)
            except CheckpointError:
                refused += 1
                continue
        for tensor in found.values():
            assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(data)
            tensor.read()
    assert 50 < refused < 400


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        is_torch_file(tmp_path / "a.pth")
