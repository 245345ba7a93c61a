"""examples/filter.py: it learns from folders, and a server's filter is what it has learned."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxl.server import filters

FILE = Path(__file__).parents[2] / "examples" / "filter.py"


def write(folder: Path, colour: int, random: np.random.Generator) -> None:
    """Pictures that are noise, lighter in one colour."""
    folder.mkdir()
    for number in range(8):
        pixels = random.integers(0, 120, (32, 32, 3))
        pixels[..., colour] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def test_what_it_learns_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    random = np.random.default_rng(0)
    for name, colour in (("red", 0), ("blue", 2), ("red-2", 0), ("blue-2", 2)):
        write(tmp_path / name, colour, random)
    model = str(tmp_path / "filter.npz")
    for command, ending in (("learn", ""), ("test", "-2")):
        folders = ["--refuse", str(tmp_path / f"red{ending}"), "--allow", str(tmp_path / f"blue{ending}")]
        monkeypatch.setattr("sys.argv", [str(FILE), command, *folders, "-o", model])
        runpy.run_path(str(FILE), run_name="__main__")
        assert capsys.readouterr().out == "refuse: 0 pass, 0 blur, 8 refuse\nallow: 8 pass, 0 blur, 0 refuse\n"
    look = filters.load(f"{FILE}:look")
    assert look.verdict(Image.open(tmp_path / "red-2" / "0.png"), "") == "refuse"
