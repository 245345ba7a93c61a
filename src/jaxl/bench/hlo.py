"""What the compiler says that a TPU program's operations cost, read from the text of the optimized program.

The compiler writes `estimated_cycles` beside each operation that it schedules itself. Of kernels made with Pallas it
knows nothing but the operations and bytes that they state; they count as what the chip needs for those at the least,
the longer of the two. Copies that the compiler starts early, to go on beside other work, have no cycles and count as
hidden. What goes from chip to chip has no cycles either: `received` counts its bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

KERNEL = "tpu_custom_call"
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclass(frozen=True)
class Rates:
    """The work of a core in a cycle: operations of its matrix unit in bfloat16, and bytes of memory read or written."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Operation:
    """An operation of a program: `cycles` of all `times` that it runs together, None where nothing is known.

    `kind` is one of attention, convolution, matrix product, normalisation, copy, collective and other; `source` is
    the path of the JAX operation that it came from.
    """

    name: str
    kind: str
    cycles: float | None
    source: str
    shape: str
    times: int = 1


def operations(text: str, rates: Rates) -> list[Operation]:
    """The operations of a program that cost something, the most expensive first.

    A computation that is called counts at each call. The body of a loop counts as often as it is known to run, and
    once where that is decided at run time.
    """
    computations, entry = _computations(text)
    found: list[Operation] = []

    def visit(computation: str, times: int) -> None:
        for line in computations.get(computation, ()):
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            name, shape, opcode = instruction.groups()
            for called, own in _calls(line, opcode, computations):
                visit(called, times * own)
            operation = _operation(line, name, shape, opcode, rates)
            if operation is not None:
                cycles = None if operation.cycles is None else operation.cycles * times
                found.append(replace(operation, cycles=cycles, times=times))

    visit(entry, 1)
    return sorted(found, key=lambda operation: -(operation.cycles or 0))


def total(found: Iterable[Operation]) -> float:
    """Cycles of all operations of which they are known."""
    return sum(operation.cycles or 0 for operation in found)


def by_kind(found: Iterable[Operation]) -> dict[str, float]:
    """Cycles of each kind of operation, the most first."""
    cycles: Mapping[str, float] = defaultdict(float)
    for operation in found:
        cycles[operation.kind] += operation.cycles or 0
    return dict(sorted(cycles.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Received:
    """What a device gets from others in one run of a program, the body of a loop counted once."""

    transfers: int
    bytes: float


def received(text: str) -> Received:
    """Return what collectives bring to a device, over one link: none of n parts that it has already comes again.

    A gathering that goes on beside other work is in the text several times, with the number of its channel.
    """
    once: dict[str, float] = {}
    for number, line in enumerate(text.splitlines()):
        found = _COLLECTIVE.match(line)
        if found is None:
            continue
        shapes, opcode = found.groups()
        sizes = [_bytes(*each) for each in re.findall(r"([a-z]+\d+|pred)\[([\d,]*)\]", shapes)]
        if opcode == "collective-permute":
            once[f"line {number}"] = sizes[0]
            continue
        channel = re.search(r"channel_id=(\d+)", line) if opcode == "all-gather" else None
        others = 1 - 1 / _group(line)
        whole = max(sizes) if opcode == "all-gather" else sum(sizes)
        once[f"channel {channel[1]}" if channel else f"line {number}"] = others * whole * (1 + (opcode == "all-reduce"))
    return Received(len(once), sum(once.values()))


def _bytes(dtype: str, dims: str) -> int:
    bits = re.search(r"\d+", dtype)
    return math.prod(int(size) for size in dims.split(",") if size) * (int(bits[0]) // 8 if bits else 1)


def _group(line: str) -> int:
    """How many devices take part in a collective."""
    listed, counted = (
        re.search(r"replica_groups=\{\{([\d,]*)\}", line),
        re.search(r"replica_groups=\[\d+,(\d+)\]", line),
    )
    return len(listed[1].split(",")) if listed else int(counted[1]) if counted else 1


_COLLECTIVE = re.compile(rf"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")


def _computations(text: str) -> tuple[dict[str, Sequence[str]], str]:
    """The lines of each computation, and the name of the one that the program begins with."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        head = None if line.startswith(" ") else _COMPUTATION.match(line)
        if head is not None:
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return dict(found), entry


def _calls(line: str, opcode: str, computations: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """The computations that an instruction runs, and how often. What is inside a fusion is estimated as one."""
    if opcode == "while":
        body = re.search(r"body=%?([\w.\-]+)", line)
        return [(body[1], _trips(line, computations))] if body else []
    if opcode in ("call", "async-start"):
        called = re.search(r"(?:to_apply|calls)=%?([\w.\-]+)", line)
        return [(called[1], 1)] if called else []
    if opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        names = branches[1].split(",") if branches else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
        return [(name.strip().removeprefix("%"), 1) for name in names]
    return []


def _trips(line: str, computations: Mapping[str, Sequence[str]]) -> int:
    """Return how often a loop runs: as the compiler says, or else while a counter from 0 is less than a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = "\n".join(computations.get(condition[1], ()) if condition else ())
    limit = re.search(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", lines)
    constant = limit and re.search(rf"%?{re.escape(limit[1])} = .* constant\((\d+)\)", lines)
    return int(constant[1]) if constant else 1


def _operation(line: str, name: str, shape: str, opcode: str, rates: Rates) -> Operation | None:
    source = re.search(r'op_name="([^"]*)"', line)
    path = source[1] if source else ""
    shape = re.sub(r"\{[^}]*\}", "", shape)
    cycles = re.search(r'"estimated_cycles":"?(\d+)', line)
    if cycles:
        return Operation(name, _kind(opcode, path), float(cycles[1]), path, shape)
    if opcode == "custom-call" and f'custom_call_target="{KERNEL}"' in line:
        return Operation(name, _kind_of_kernel(name), _at_least(line, rates), path, shape)
    if opcode.removesuffix("-start") in COLLECTIVES:
        return Operation(name, "collective", None, path, shape)
    return None


def _at_least(line: str, rates: Rates) -> float | None:
    """Cycles that a chip needs for the operations and bytes that a kernel states."""
    stated = re.search(r'"cost_estimate":(\{[^}]*\})', line)
    if stated is None:
        return None
    cost = json.loads(stated[1])
    return max(float(cost["flops"]) / rates.flops, float(cost["bytes_accessed"]) / rates.bytes)


def _kind_of_kernel(name: str) -> str:
    kinds = {"attention": "attention", "conv": "convolution", "product": "matrix product", "moments": "normalisation"}
    return next((kind for word, kind in kinds.items() if name.startswith(word)), "other")


def _kind(opcode: str, path: str) -> str:
    operation = path.rpartition("/")[2].split(";")[0]
    if "...ts" in path or "...td" in path:
        return "attention"
    if "conv_general_dilated" in operation:
        return "convolution"
    if "dot_general" in operation:
        return "matrix product"
    if operation.startswith(("reduce", "rsqrt", "square", "div")):
        return "normalisation"
    if opcode in ("copy", "transpose", "broadcast", "pad", "slice", "reshape", "bitcast") or operation in (
        "concatenate",
        "broadcast_in_dim",
        "transpose",
    ):
        return "copy"
    return "other"
