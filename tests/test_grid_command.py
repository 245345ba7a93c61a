"""`jaxl grid`: pictures of different steps and schedulers in running batches, on one sheet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxl.call.sheet import GAP
from jaxl.cli import run


def test_a_grid(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxl.cli.grid.AT_ONCE", 3)  # as many as in other tests, so that programs are compiled once
    file, (pipe, params) = tmp_path / "grid.png", small
    axes = ("--x", "steps=1,2", "--y", "sampler=euler,DPM++ 2M", "--set", "size=64x64")
    how = ("--seed", "3", "--model", pipe.checkpoint.source, "--quiet", "--json", "-o", str(file))
    assert run(["grid", "a cat", *axes, *how]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(file), "pictures": 4, "seed": 3}
    with Image.open(file) as made:
        assert json.loads(made.info["jaxl grid"])["y"] == "sampler=euler,DPM++ 2M"
        last = made.crop((made.width - 64 - GAP, made.height - 64 - GAP, made.width - GAP, made.height - GAP))
    own = pipe.generate(params, "a cat", steps=2, scheduler="dpm++2m", seed=3, width=64, height=64).images[0]
    assert np.abs(np.asarray(last, int) - np.asarray(own, int)).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--x", "stepps=1", "-o", "a.png"), "--x 'stepps': did you mean 'steps'"),
        (("--x", "steps=1", "-o", "a.jpg"), "--output 'a.jpg': only PNG is written"),
        (("--x", "steps=1", "--set", "size=9", "-o", "a.png"), "--set '9'"),
    ],
)
def test_mistakes(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["grid", "a cat", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
