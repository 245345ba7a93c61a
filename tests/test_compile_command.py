"""`jaxl compile` and `jaxl cache`: what is compiled ahead is what `jaxl generate` then takes from the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxl
from jaxl.call.options import LoadOptions
from jaxl.cli import run
from jaxl.cli.compile import _compile
from jaxl.run.bucket import Bucket
from jaxl.run.programs import PICTURE, AnyProgram

KINDS = [program.name for program in PICTURE]

# commands, each of which finds nothing of those before, and then of each its exit status, how many programs it asked
# for, and how many of them came from the cache
CODE = """
import gc, json, sys, jax
from jaxl.cli import run
events, counts = [], []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
for arguments in json.loads(sys.argv[1]):
    events.clear()
    code = run(arguments)
    counts.append([code, events.count("compile_requests_use_cache"), events.count("cache_hits")])
    gc.collect()
    jax.clear_caches()
print(json.dumps(counts))
"""


def process(folder: Path, *commands: list[str]) -> tuple[list[str], list[list[int]]]:
    """Run commands in a fresh process: what they print, and of each its exit status and counts."""
    environment = {**os.environ, "JAXL_CACHE_DIR": str(folder / "programs")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.stderr == ""
    *lines, counts = done.stdout.splitlines()
    return lines, json.loads(counts)


def test_generate_starts_from_what_was_compiled(tmp_path: Path, small: Any) -> None:
    model = ["--model", small[0].checkpoint.source]
    lines, counts = process(tmp_path, ["compile", *model, "--sizes", "32x32", "--quiet"])
    assert counts == [[0, 5, 0]]
    assert [line.split()[0] for line in lines] == list(KINDS)
    assert all(" 32x32, 1 on " in line and line.endswith(" s  compiled") for line in lines)

    drawing = ["generate", "a llama", *model, "--size", "32x32", "--steps", "1", "--quiet", "--seed", "1"]
    again = ["compile", *model, "--sizes", "32x32", "--batches", "1,1", "--json"]
    (drawn, *_, report, folder, found), counts = process(tmp_path, drawing, again, ["cache"])
    programs = json.loads(report)["programs"]
    assert drawn == "jaxl-1.png"
    assert counts == [[0, 5, 5], [0, 5, 5], [0, 0, 0]]
    assert [(each["program"], each["size"], each["batch"], each["cached"]) for each in programs] == [
        (kind, "32x32", 1, True) for kind in KINDS
    ]
    assert folder == str(tmp_path.resolve() / "programs")
    assert found.startswith("5 programs, ")
    assert found.endswith(" MiB, 8 GiB at most")


def test_what_buckets_share_is_told_once(monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    mesh = jaxl.make_mesh(jax.devices()[5:6])  # whose programs no other pipeline has
    pipe = jaxl.Pipeline(small[0].checkpoint, LoadOptions(dtype="float32", mesh=mesh))
    traced: list[str] = []

    def trace(program: AnyProgram, bucket: Bucket | None) -> Any:
        traced.append(program.name)
        return jax.jit(lambda x: x).trace(np.float32(1))

    monkeypatch.setattr(pipe.programs, "trace", trace)
    work = [(pipe, pipe.bucket(2, 32, width, guided=False)) for width in (32, 40)]
    told: list[tuple[str, int, int]] = []
    programs = [(each.program, each.size) for each in _compile(work, lambda *each: told.append(each))]
    assert programs[:5] == [(kind, "32x32") for kind in KINDS]
    assert programs[5:] == [(kind, "40x32") for kind in KINDS if kind not in ("encode_text", "gather")]
    assert sorted(traced) == sorted(kind for kind, _ in programs)
    assert told == [("compile", done, 10) for done in range(10)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "64"], "--sizes '64': give WIDTHxHEIGHT in pixels, such as 1024x768, with commas"),
        (["--sizes", "63x64"], "--size, width 63: give a positive multiple of 8"),
        (["--batches", "1,0"], "--batches '1,0': give whole numbers of at least 1"),
        (["--batches", "many"], "--batches 'many': give whole numbers of at least 1"),
        (["--model", "missing/"], "missing/: no such file or folder"),
        (["--precision", "fp3"], "--precision 'fp3'"),
        (["--precision", "int8@33"], "--precision 'int8@33': its layers are chosen when the model is first loaded"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run(["compile", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxl: error: {message}")
    assert err.count("\n") == 1


def test_nowhere_to_keep_them(tmp_path: Path) -> None:
    """An unsafe folder that the user named is an error of his; without any, there is nothing to compile for."""
    tmp_path.chmod(0o777)
    (tmp_path / "programs").mkdir()
    environment: dict[str, Any] = {**os.environ, "JAXL_CACHE_DIR": str(tmp_path / "programs")}
    del environment["XLA_FLAGS"]
    command = [sys.executable, "-m", "jaxl", "compile", "--sizes", "32x32"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"jaxl: error: JAXL_CACHE_DIR '{tmp_path / 'programs'}': ")
    assert done.stderr.endswith("other users can write to it; name a folder of your own\n")

    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    del environment["JAXL_CACHE_DIR"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    warning, error = done.stderr.splitlines()
    assert warning.startswith("jaxl: warning: compiled programs are not kept (")
    assert error == "jaxl: error: there is no folder to keep programs in, so compiling ahead serves nothing"


def test_cache_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    for name in ("one-cache", "one-atime", "scales"):
        (tmp_path / "programs" / name).write_bytes(b"12345678")
    (report, *lines), counts = process(tmp_path, ["cache", "--json"], ["cache", "--clear"], ["cache"])
    assert counts == [[0, 0, 0]] * 3
    folder = str(tmp_path.resolve() / "programs")
    assert json.loads(report) == {"folder": folder, "programs": 1, "bytes": 8, "max_bytes": 2**33}
    assert lines[:2] == [folder, "1 programs, 0.0 MiB, 8 GiB at most, removed"]
    assert lines[2:] == [folder, "0 programs, 0.0 MiB, 8 GiB at most"]
    assert (tmp_path / "programs" / "scales").exists()
