"""examples/tpu.ipynb: its cells run in their order, on this machine and with a small model."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from xla_flags import xla_flags

import jaxl
from article import check_pictures
from jaxl.cli import run

ROOT = Path(__file__).parents[2]
CELLS = [
    cell for cell in json.loads((ROOT / "examples" / "tpu.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
]
ESTIMATE = {"step_s": 0.1, "call_s": 2.0, "images_per_s": 0.5}


def tagged(cell: dict[str, Any], tag: str) -> bool:
    return tag in cell["metadata"].get("tags", ())


def test_every_cell_runs(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the one that installs. The estimate needs a compiler and minutes, so its answer is made up.

    The article's program has two devices, and draws a picture on each.
    """
    pytest.importorskip("flax")  # the article's program has it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(jaxl.__file__).parents[1]))
    names: dict[str, Any] = {}
    asked: list[tuple[str, ...]] = []
    plain = subprocess.Popen

    def start(command: Sequence[str], **options: Any) -> Any:
        asked.append(tuple(command[1:]))
        made_up = ["-c", f"print({json.dumps(ESTIMATE)!r})"] if "estimate" in command else command[1:]
        of_article = {"XLA_FLAGS": xla_flags(2)} if command[1].endswith("article.py") else {}
        return plain([sys.executable, *made_up], env=os.environ | of_article, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    for cell in CELLS:
        if not tagged(cell, "install"):
            exec("".join(cell["source"]), names)
        if tagged(cell, "parameters"):
            names |= {
                "MODEL": str(small[0].checkpoint.source),
                "FOLDER": str(ROOT),
                "SIZE": "64x64",
                "STEPS": 2,
                "RUNS": 1,
            }
    assert [command[:3] for command in asked if "-m" in command] == [
        ("-m", "jaxl", name) for name in ("devices", "bench", "estimate")
    ]
    assert names["sheet"].size == (128, 64)
    check_pictures(tmp_path / "pictures", 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("a step, ms")
    assert lines[-1].split()[2] == "0.500"


def test_the_estimate_has_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Its options are there: a chip that nobody has is refused for that alone."""
    (cell,) = [cell for cell in CELLS if '"estimate"' in "".join(cell["source"])]
    commands: list[Sequence[str]] = []
    names = {"TOPOLOGY": "v99", "SIZE": "64x64", "STEPS": 2, "report": {"vae_dtype": "float32"}}
    exec("".join(cell["source"]), names | {"run": lambda *command: commands.append(command), "results": lambda _: None})
    assert run(list(commands[0][2:])) == 2
    assert "--topology 'v99'" in capsys.readouterr().err


def test_it_has_no_outputs() -> None:
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS)
