"""Fresh processes: what they are asked, and which cache they find. `jaxl generate` itself is tested elsewhere."""

import sys
from pathlib import Path

import pytest

from jaxl.bench.startup import count_devices, measure_startup
from jaxl.bench.workload import Workload
from jaxl.errors import InputError, JaxlError

WORKLOAD = Workload(1, 64, 32, 2, 4, "euler", 5.0)


def pretend(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a shell script where Python would run jaxl."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_cold_and_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in turns, each time from an empty cache that the second process finds filled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    kind = '[ -d "$JAXL_CACHE_DIR" ] && echo warm || { echo cold; sleep 0.2; mkdir "$JAXL_CACHE_DIR"; }'
    pretend(f'({kind}; echo "$@" $JAX_COMPILATION_CACHE_DIR) >> {tmp_path}/told', tmp_path, monkeypatch)
    ticks: list[None] = []
    startup = measure_startup("sdxl", WORKLOAD, "auto", 2, lambda: ticks.append(None))
    told = (tmp_path / "told").read_text().splitlines()
    assert told[::2] == ["cold", "warm"] * 2
    assert len(ticks) == 4
    assert startup.cold_s.min >= 0.2
    assert startup.cold_s.min <= startup.cold_s.median <= startup.cold_s.max
    options = "--model=sdxl --size=64x32 --count=2 --steps=4 --scheduler=euler --guidance=5.0 --dtype=auto --output="
    assert told[1].startswith("-m jaxl generate a rocket on a purple background, noto style --quiet ")
    assert options in told[1]
    assert "elsewhere" not in told[1]


def test_counts_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("""echo warning; echo '{"count": 4}'""", tmp_path, monkeypatch)
    assert count_devices() == 4


def test_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("echo jaxl: error: --steps 0: too few >&2; exit 2", tmp_path, monkeypatch)
    with pytest.raises(InputError, match="jaxl generate says: --steps 0: too few"):
        measure_startup("sdxl", WORKLOAD, "auto", 1, lambda: None)
    pretend("exit 1", tmp_path, monkeypatch)
    with pytest.raises(JaxlError, match="a fresh process of jaxl generate failed: exit status 1"):
        measure_startup("sdxl", WORKLOAD, "auto", 1, lambda: None)
