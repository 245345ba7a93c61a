"""benchmarks/gpu.sh with an interpreter that only pretends to measure, and the table of what it collects."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
TABLE = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "gpu_table.py"), run_name="gpu_table"))
PRETENDING = f"""#!/bin/sh
case "$*" in
    *gpu_table*) exec {sys.executable} "$@" ;;
    *gpu_kernels*) printf '| X | us |\\n| --- | --- |\\n| norm | 7 |\\n{{"device": "X", "jax": "1"}}\\n' ;;
    *switches*) echo "no such kernel" >&2; exit 1 ;;
    *torch-compile*) echo "jaxl: error: --peer: not installed here" >&2; exit 2 ;;
    *) echo '{{}}' ;;
esac
"""


def test_parts_fail_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(PRETENDING)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "PARTS": "kernels switches peers", "MODEL": "random:tiny"}
    command = ["sh", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert page == done.stdout
    parts = {part["name"]: part for part in json.loads((tmp_path / "out" / "gpu.json").read_text())}
    assert {name: part["outcome"] for name, part in parts.items()} == {
        "kernels": "done",
        "switches": "failed: no such kernel",
        "peers": "failed: jaxl: error: --peer: not installed here",
        "eager": "done",
        "weights": "done",
    }
    assert parts["kernels"]["results"] == [{"device": "X", "jax": "1"}]
    for line in ("X, jax 1", "| norm | 7 |", "| a step and a picture with each kernel | failed: no such kernel |"):
        assert line in page


def test_what_was_not_done_is_said(tmp_path: Path) -> None:
    for name, text in (
        ("batch-8.out", "| a step | 1 |\n"),
        ("batch-8.end", "124 110 110"),
        ("alone.out", ""),
        ("alone.err", "working"),
    ):
        (tmp_path / name).write_text(text)
    parts = [TABLE.read_part(tmp_path, name) for name in ("batch-8", "alone", "precisions-4")]
    assert [part.outcome for part in parts] == ["stopped after its 110 s", "running", "not begun"]
    page = TABLE.markdown(parts)
    assert "| a step in each precision" not in page
    assert "| a step of 4 images in each precision | not begun |  |" in page
    assert "**8 images at once**\n\n| a step | 1 |" in page


def test_a_folder_is_needed() -> None:
    done = subprocess.run(["sh", str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
