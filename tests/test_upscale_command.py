"""`jaxl upscale`: a larger picture, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upscaler_files import golden, saved, weights_of

import jaxl
from jaxl.cli import run
from jaxl.png import write_png

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(Path("in.png"), NOISE, None, {"parameters": "a cat\nSteps: 4"})


def test_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(Path("x4.safetensors"), weights_of(golden("compact_4x")[0]))
    how = ["--upscaler", str(file), "--tile", "16", "--scale", "3"]
    assert run(["upscale", "in.png", *how, "-o", "new/out.png", "--json"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out) == {"output": "new/out.png", "upscaler": str(file), "width": 42, "height": 30}
    assert error == ""
    with Image.open("new/out.png") as written:
        np.testing.assert_array_equal(written, jaxl.upscale(NOISE, jaxl.Upscaler.from_file(file, tile=16), 3))
        assert written.info["parameters"] == "a cat\nSteps: 4"


def test_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upscale", "in.png", "--scale", "2", "--output", "out.png"]) == 0
    assert capsys.readouterr() == ("out.png\n", "")
    with Image.open("out.png") as written:
        np.testing.assert_array_equal(written, NOISE.resize((28, 20), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.png", "-o", "out.png"], "--scale None: give a number above 0"),
        (["in.png", "-o", "out.jpg", "--scale", "2"], "--output 'out.jpg': only PNG is written"),
        (["gone.png", "-o", "out.png", "--scale", "2"], "PICTURE 'gone.png': No such file"),
        (["in.png", "-o", "out.png", "--upscaler", "gone.pth"], "gone.pth: no such file"),
        (["in.png", "-o", "out.png", "--upscaler", "in.png"], "in.png: a picture (PNG), not weights"),
        (["in.png", "-o", "out.png", "--upscaler", "lancos"], "--upscaler 'lancos': did you mean 'lanczos'?"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upscale", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"jaxl: error: {message}")
    assert error.count("\n") == 1
    assert [file.name for file in Path().iterdir()] == ["in.png"]
