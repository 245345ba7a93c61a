"""The table of what benchmarks/gpu.sh has measured so far.

    python benchmarks/gpu_table.py FOLDER

It reads what each part of FOLDER/parts printed, its lines of JSON and of tables, and how it ended, and writes
FOLDER/gpu.json and FOLDER/gpu.md. A part that was stopped has what it printed until then.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxl.bench.prices import DEFAULT, read_prices
from jaxl.bench.report import markdown_table, priced, tables
from jaxl.files import write_text

STOPPED = (124, 137)  # by `timeout`
PARTS = {
    "weights": "random weights, written",
    "kernels": "kernels beside XLA's forms",
    "switches": "a step and a picture with each kernel",
    "peers": "jaxl beside diffusers and torch-compile",
    "eager": "jaxl beside diffusers alone",
    "alone": "jaxl alone",
    "startup": "the first picture, cold and warm",
    "precisions": "a step in each precision",
    "batch-N": "N images at once",
    "precisions-N": "a step of N images in each precision",
}


@dataclass(frozen=True)
class Part:
    """A part of the plan: how it ended, after how many seconds, and what it printed."""

    name: str
    outcome: str
    seconds: int | None
    results: list[dict[str, Any]]
    lines: list[str]

    @property
    def title(self) -> str:
        name, _, number = self.name.partition("-")
        return PARTS[f"{name}-N"].replace("N", number) if number else PARTS[name]


def read_part(folder: Path, name: str) -> Part:
    """Return what there is of a part."""
    out, err, end = (_read(folder / f"{name}.{kind}") for kind in ("out", "err", "end"))
    printed = out.splitlines()
    results = [json.loads(line) for line in printed if line.startswith("{") and line.endswith("}")]
    outcome, seconds = "not begun", None
    if end:
        status, seconds, limit = map(int, end.split())
        said = (err.strip().splitlines() or [f"exit status {status}"])[-1]
        outcome = "done" if status == 0 else f"stopped after its {limit} s" if status in STOPPED else f"failed: {said}"
    elif (folder / f"{name}.out").exists():
        outcome = "running"
    return Part(name, outcome, seconds, results, [line for line in printed if line.startswith("|")])


def markdown(parts: list[Part]) -> str:
    """The machine, how each part ended, and the tables."""
    rows = [
        f"| {part.title} | {part.outcome.replace('|', '/')} | {'' if part.seconds is None else part.seconds} |"
        for part in parts
    ]
    sections = ["\n".join(["| part | | s |", "| --- | --- | --- |", *rows])]
    found = [result for part in parts for result in part.results]
    sections += [f"{each['device']}, jax {each['jax']}" for each in found if "device" in each][:1]
    sections += ["\n".join([f"**{part.title}**", "", *part.lines]) for part in parts if part.lines]
    reports = [report for result in found for report in result.get("reports", [])]
    results = priced(reports, read_prices(DEFAULT))
    sections += [f"**{table.title}**\n\n{markdown_table(table)}" for table in tables(results)]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    plan = _read(folder / "parts" / "plan").split()
    others = {path.stem for path in (folder / "parts").glob("*.out")} - set(plan)
    parts = [read_part(folder / "parts", name) for name in (*plan, *sorted(others))]
    write_text(folder / "gpu.json", json.dumps([asdict(part) for part in parts], indent=1) + "\n")
    write_text(folder / "gpu.md", markdown(parts))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


if __name__ == "__main__":
    main()
