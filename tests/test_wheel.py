"""What `make wheel` would find amiss in a wheel; it builds one itself, and draws with it."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def try_wheel() -> SimpleNamespace:
    return SimpleNamespace(
        **runpy.run_path(str(Path(__file__).parents[1] / "tools" / "try_wheel.py"), run_name="try_wheel")
    )


def test_what_a_wheel_lacks(try_wheel: SimpleNamespace) -> None:
    everything = set(try_wheel.missing(set()))
    assert {"jaxl/__init__.py", "jaxl/server/web/static/main.js", "jaxl/text/clip_merges.txt.gz"} <= everything
    assert "jaxl/models/tiny/loras/chalk.safetensors" in everything
    assert "jaxl/models/tiny/controlnets/edges/diffusion_pytorch_model.safetensors" in everything
    assert try_wheel.missing(everything - {"jaxl/bench/prices.toml"}) == ["jaxl/bench/prices.toml"]
    assert try_wheel.missing(everything) == []


def test_what_a_wheel_should_not_hold(try_wheel: SimpleNamespace) -> None:
    fine = {"jaxl/__init__.py", "jaxl-0.2.0.dist-info/RECORD"}
    assert try_wheel.foreign(fine) == []
    assert try_wheel.foreign({*fine, "tests/test_png.py", "benchmarks/tables.py"}) == [
        "benchmarks/tables.py",
        "tests/test_png.py",
    ]
