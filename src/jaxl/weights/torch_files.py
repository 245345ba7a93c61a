"""Tensors in files of torch.save, found without executing anything that is in them.

Such a file is a pickle, which is a program for a machine with a stack that may call any function of Python. The machine
here calls none. It builds texts, numbers, lists, tuples and dictionaries, and knows by name:

- `torch._utils._rebuild_tensor_v2` of a part of a storage, whose elements lie one after another, and
  `torch._utils._rebuild_parameter` of such a tensor;
- `collections.OrderedDict`, empty or of pairs, and whatever was set on it, which is dropped;
- torch's storages, from `FloatStorage` to `BoolStorage`, as records in the file.

OPCODES are those that torch.save writes with protocols 2 to 4. Any other opcode or name is refused. The numbers
themselves are not in the pickle: a `Tensor` says where in the file they lie. The file is a ZIP archive that compresses
nothing, or, before torch 1.6, some pickles with the storages behind them
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from jaxl.errors import CheckpointError
from jaxl.weights.store import DTYPES, Tensor

# the first bytes of both kinds
ZIP, LEGACY = b"PK\x03\x04", b"\x80"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

MOST_OPCODES = 500_000
MOST_PICKLE_BYTES = 2**26
MOST_NAME = 200
DEEPEST = 4  # dictionaries that are looked into, in dictionaries

STORAGES: Mapping[str, str] = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": "F32",
        "Half": "F16",
        "BFloat16": "BF16",
        "Double": "F64",
        "Byte": "U8",
        "Char": "I8",
        "Short": "I16",
        "Int": "I32",
        "Long": "I64",
        "Bool": "BOOL",
    }.items()
}
TENSOR, PARAMETER, DICTIONARY = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
)
KNOWN = {*STORAGES, TENSOR, PARAMETER, DICTIONARY}

BY_CODE = {each.code: each for each in pickletools.opcodes}
# opcodes that push the value beside them
VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
IDLE = {"PROTO", "FRAME"}
STACKED = {
    *("MARK", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MEMOIZE", "STOP"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
}
OPCODES = {*VALUES, *CONSTANTS, *TUPLES, *PUT, *GET, *IDLE, *STACKED}


class _DamagedError(ValueError):
    """The pickle cannot be what torch.save has written."""


class _RefusedError(ValueError):
    """The pickle asks for what is not known here."""


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names; it is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Elements somewhere in the file."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True)
class _Part:
    """A tensor: some elements of a storage, from an offset on."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]


@dataclass
class _Machine:
    """The stack above the last mark, those below it, what is remembered, and the storages that were named."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)

    def run(self, stream: BinaryIO) -> Any:
        """Return what the next pickle of a stream makes."""
        for _ in range(MOST_OPCODES):
            opcode = BY_CODE[stream.read(1).decode("latin-1")]
            if opcode.name not in OPCODES:  # before what stands beside it is read
                raise _RefusedError(f"has the opcode {opcode.name}")
            argument = _argument(opcode, stream)
            if opcode.name == "STOP":
                (made,) = self.stack
                return made
            self.step(opcode.name, argument)
        raise _RefusedError(f"has more than {MOST_OPCODES} opcodes")

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case _ if opcode in VALUES:
                stack.append(argument)
            case _ if opcode in CONSTANTS:
                stack.append(CONSTANTS[opcode]())
            case _ if opcode in TUPLES:
                stack[-TUPLES[opcode] :] = [tuple(_last(stack, TUPLES[opcode]))]
            case _ if opcode in PUT:
                self.memory[argument] = stack[-1]
            case _ if opcode in GET:
                stack.append(self.memory[argument])
            case "MEMOIZE":
                self.memory[len(self.memory)] = stack[-1]
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "TUPLE":
                above = self.above()
                self.stack.append(tuple(above))
            case "APPEND":
                item = stack.pop()
                _of(list, stack[-1]).append(item)
            case "APPENDS":
                above = self.above()
                _of(list, self.stack[-1]).extend(above)
            case "SETITEM":
                key, value = _last(stack, 2)
                del stack[-2:]
                _set(stack[-1], [(key, value)])
            case "SETITEMS":
                above = self.above()
                _set(self.stack[-1], zip(above[::2], above[1::2], strict=True))
            case "GLOBAL":
                stack.append(_named(argument))
            case "STACK_GLOBAL":
                module, name = _last(stack, 2)
                stack[-2:] = [_named(f"{_of(str, module)} {_of(str, name)}")]
            case "REDUCE":
                name, arguments = _last(stack, 2)
                stack[-2:] = [_made(_of(_Name, name).name, _of(tuple, arguments))]
            case "BUILD":  # what is set on a dictionary, such as the versions of modules
                stack.pop()
                _of(dict, stack[-1])
            case "BINPERSID":
                storage = stack[-1] = _storage(_of(tuple, stack[-1]))
                if self.storages.setdefault(storage.key, storage) != storage:
                    raise _DamagedError

    def above(self) -> list[Any]:
        """Return what is above the last mark, and go back to what is below."""
        above, self.stack = self.stack, self.below.pop()
        return above


def is_torch_file(file: Path) -> bool:
    """Whether a file begins like one of torch.save. Raises CheckpointError."""
    try:
        with file.open("rb") as stream:
            return stream.read(4).startswith((ZIP, LEGACY))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error


def read_torch_file(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of torch.save, unread, by the keys of their dictionaries joined with dots.

    Whatever is no tensor is left out. Raises CheckpointError for a file that is damaged, that asks for anything but
    tensors, or whose tensors are not stored row by row.
    """
    try:
        with file.open("rb") as stream:
            made, places = _zipped(stream) if stream.read(4) == ZIP else _legacy(stream)
            if not isinstance(made, dict):
                raise _RefusedError("holds no dictionary of tensors")
            tensors: dict[str, Tensor] = {}
            for key, part in _flat(made):
                if key in tensors:
                    raise _DamagedError
                tensors[key] = _placed(file, key, part, places)
            return tensors
    except CheckpointError:
        raise
    except _RefusedError as error:
        remedy = "and jaxl reads tensors alone, since a pickle can run code; convert it to safetensors"
        raise CheckpointError(f"{file}: a pickle that {error}, {remedy}") from None
    except (
        *(ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, EOFError),
        *(struct.error, zipfile.BadZipFile, NotImplementedError, MemoryError),
    ) as error:
        raise CheckpointError(f"{file}: damaged, or no file of torch.save; get it again") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error


Places = Mapping[str, tuple[int, int]]  # where each storage begins, and its bytes


def _zipped(stream: BinaryIO) -> tuple[Any, Places]:
    """Return what the pickle of an archive makes, and where its storages are."""
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    outer = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(outer) != 1:
        raise _DamagedError
    inner = {name.removeprefix(outer[0]): entry for name, entry in entries.items() if name.startswith(outer[0])}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise _RefusedError("holds a program (TorchScript)")
    places = {name: _extent(stream, entry) for name, entry in inner.items()}

    def content(name: str) -> bytes:
        start, size = places[name]
        if size > MOST_PICKLE_BYTES:
            raise _RefusedError(f"is larger than {MOST_PICKLE_BYTES} bytes")
        stream.seek(start)
        return stream.read(size)

    if "byteorder" in inner and content("byteorder") != b"little":
        raise _RefusedError("was written on a machine with the other order of bytes")
    made = _Machine().run(io.BytesIO(content("data.pkl")))
    return made, {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}


def _extent(stream: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Return where the bytes of an entry begin, and how many there are."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise _DamagedError
    stream.seek(entry.header_offset)
    header = stream.read(30)
    if not header.startswith(ZIP):
        raise _DamagedError
    name, extra = struct.unpack("<HH", header[26:])
    return entry.header_offset + 30 + name + extra, entry.file_size


def _legacy(stream: BinaryIO) -> tuple[Any, Places]:
    """Return what the main pickle of an older file makes, and where its storages are."""
    stream.seek(0)
    for number in (MAGIC, PROTOCOL):
        if _Machine().run(stream) != number:
            raise _RefusedError("is none of torch.save")
    machine = _of(dict, _Machine().run(stream))
    if machine.get("little_endian") is not True:
        raise _RefusedError("was written on a machine with the other order of bytes")
    main = _Machine()
    made, places = main.run(stream), {}
    for key in _of(list, _Machine().run(stream)):
        (elements,) = struct.unpack("<q", stream.read(8))
        storage = main.storages[_of(str, key)]
        if elements != storage.elements:
            raise _DamagedError
        start, size = stream.tell(), elements * DTYPES[storage.dtype].itemsize
        places[key] = start, size
        stream.seek(start + size)
    return made, places


def _flat(made: dict[Any, Any]) -> Iterator[tuple[str, _Part]]:
    """Return the tensors in a dictionary, and in those in it, which may hold each other any number of times."""
    waiting = deque((str(key), value, DEEPEST) for key, value in made.items())
    for _ in range(MOST_OPCODES):
        if not waiting:
            return
        name, value, depth = waiting.popleft()
        if isinstance(value, _Part):
            yield name, value
        elif isinstance(value, dict) and depth:
            waiting.extend((f"{name}.{key}", inner, depth - 1) for key, inner in value.items())
        if len(waiting) > MOST_OPCODES:
            break
    raise _RefusedError("has dictionaries in dictionaries without end")


def _placed(file: Path, key: str, part: _Part, places: Places) -> Tensor:
    start, size = places[part.storage.key]
    dtype = DTYPES[part.storage.dtype]
    tensor = Tensor(key, file, dtype, part.shape, start + part.offset * dtype.itemsize)
    if part.storage.elements * dtype.itemsize > size or start + size > file.stat().st_size:
        raise CheckpointError(f"{file}: truncated, {key} is not there as a whole; get it again")
    return tensor


def _argument(opcode: pickletools.OpcodeInfo, stream: BinaryIO) -> Any:
    """Return what stands beside an opcode."""
    if opcode.name == "GLOBAL":  # two lines; pickletools would undo escapes, which there are none of
        return " ".join(stream.readline(MOST_NAME).decode("ascii").rstrip("\n") for _ in range(2))
    return None if opcode.arg is None else opcode.arg.reader(stream)


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise _DamagedError
    return stack[-count:]


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _DamagedError
    return value


def _set(target: Any, pairs: Any) -> None:
    for key, value in pairs:
        _of(dict, target)[_of((str, int), key)] = value


def _named(name: str) -> _Name:
    if name not in KNOWN:
        raise _RefusedError(f"names {'.'.join(name.split())[:100]!r}")
    return _Name(name)


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a call would, of those that are known."""
    if name == DICTIONARY:
        made: dict[Any, Any] = {}
        _set(made, _of(list, arguments[0]) if arguments else ())
        return made
    if name == PARAMETER:
        return _of(_Part, arguments[0])
    if name != TENSOR:
        raise _RefusedError(f"calls {name.replace(' ', '.')!r}")
    storage, offset, shape, strides = (
        _of(kind, value) for kind, value in zip((_Storage, int, tuple, tuple), arguments[:4], strict=True)
    )
    if len(shape) != len(strides) or any(_of(int, number) < 0 for number in (offset, *shape, *strides)):
        raise _DamagedError
    part = _Part(storage, offset, shape)
    size = 1
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side > 1 and stride != size:
            raise _RefusedError("has a tensor that is not stored row by row")
        size *= side
    if offset + size > storage.elements:
        raise _DamagedError
    return part


def _storage(identity: tuple[Any, ...]) -> _Storage:
    """Return the storage of torch's `("storage", class, key, device, elements)`; older ones end in a view."""
    kind, name, key, _, elements, *view = identity
    if kind != "storage" or view not in ([], [None]):
        raise _DamagedError
    return _Storage(_of(str, key), STORAGES[_of(_Name, name).name], _of(int, elements))
