"""`jaxl preprocess`: a picture for a ControlNet, and the list."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxl
from jaxl.cli import run
from jaxl.cli.preprocess import preprocess
from jaxl.preprocessors.registry import PREPROCESSORS

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    NOISE.save("in.png")


def test_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preprocess", "canny", "in.png", "new/out.png", "--low", "50", "--resolution", "128"]) == 0
    assert capsys.readouterr() == ("new/out.png\n", "")
    with Image.open("new/out.png") as written:
        np.testing.assert_array_equal(written, jaxl.preprocess("canny", NOISE, low=50, resolution=128))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cany", "in.png", "out.png"], "NAME 'cany': no such preprocessor; did you mean 'canny'?"),
        (["canny", "in.png"], "OUTPUT None: give two files"),
        (["canny", "gone.png", "out.png"], "IMAGE 'gone.png': No such file"),
        (["canny", "in.png", "out.jpg"], "OUTPUT 'out.jpg': only PNG is written"),
        (["canny", "in.png", "out.png", "--low", "300"], "--low 300.0: give a whole number from 0 to 255"),
        (["canny", "in.png", "out.png", "--sigma", "3"], "--sigma 3.0: no parameter of canny"),
        (["inpaint", "in.png", "out.png"], "--mask None: inpaint takes one"),
        (["hed", "in.png", "out.png"], "NAME 'hed': it needs controlnet_aux; install it with pip"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preprocess", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"jaxl: error: {message}")
    assert error.count("\n") == 1
    assert [file.name for file in Path().iterdir()] == ["in.png"]


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preprocess"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in PREPROCESSORS)
    assert run(["preprocess", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == PREPROCESSORS.keys()


def test_each_parameter_has_a_flag() -> None:
    names = {one.name for each in PREPROCESSORS.values() for one in each.parameters}
    assert names <= {*signature(preprocess).parameters}
