"""The images: none can be built here, so what their files say is compared with the project and the manifests."""

import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import typer

from jaxl.cli.app import app

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
EXTRAS = {"cpu": {"serve", "ray"}, "cuda": {"serve", "ray", "cuda13"}, "tpu": {"serve", "ray", "tpu"}}

pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Each with its name; lines that go on are joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def values(file: Path, instruction: str) -> list[str]:
    return [rest for name, rest in instructions(file) if name == instruction]


def test_hadolint(file: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "hadolint"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


def test_stages(file: Path) -> None:
    """Only what the first stage installed is in the second, which begins anew from the same, exact, version."""
    first, second = values(file, "FROM")
    assert (first, second) == ("python:${PYTHON} AS build", "python:${PYTHON}")
    (base,) = [rest for rest in values(file, "ARG") if rest.startswith("PYTHON=")]
    version = re.fullmatch(r"PYTHON=(\d+)\.(\d+)\.\d+-slim-\w+", base)
    assert version is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert (int(version[1]), int(version[2])) >= (3, 11)
    assert [rest for rest in values(file, "COPY") if rest.startswith("--from")] == ["--from=build /opt/jaxl /opt/jaxl"]


def test_extras(file: Path) -> None:
    (line,) = [rest for rest in values(file, "RUN") if "pip install" in rest]
    asked = re.search(r'"\.\[([\w,]+)\]"', line)
    assert asked is not None
    extras = set(asked[1].split(","))
    assert extras == EXTRAS[file.name.removesuffix(".Dockerfile")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= set(project["optional-dependencies"])


def test_what_is_copied_is_there(file: Path) -> None:
    shown = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for rest in values(file, "COPY") if "--from" not in rest for name in rest.split()[:-1]}
    assert copied == shown
    for name in copied:
        assert (ROOT / name).exists()


def test_user(file: Path) -> None:
    assert values(file, "USER") == ["10001:10001"]
    # of that number and with a group of its own, which the folder of compiled programs asks for
    assert any("useradd --uid 10001 --user-group" in rest for rest in values(file, "RUN"))


def test_command(file: Path) -> None:
    (entry,), (command,) = values(file, "ENTRYPOINT"), values(file, "CMD")
    assert json.loads(entry) == ["jaxl"]
    name, *rest = json.loads(command)
    group = typer.main.get_command(app)
    options = group.commands[name].make_context(name, rest).params  # pyright: ignore[reportAttributeAccessIssue]
    assert values(file, "EXPOSE") == [str(options["port"])]
    (check,) = values(file, "HEALTHCHECK")
    *_, address = json.loads(check[check.index("[") :])
    assert address == f"http://127.0.0.1:{options['port']}/health/live"
