"""What users are told: arguments by the names that they know, and installations that work."""

import pickle
import re
from importlib import metadata
from pathlib import Path

import pytest

from jaxl.cli.app import run
from jaxl.errors import CheckpointError, DeadlineError, InputError, JaxlError, NonFiniteError, QueueFullError
from jaxl.extras import install_command
from jaxl.server.errors import api_error

NAMES = {"image": "init_images", "guidance_scale": "cfg_scale"}
NEEDS_PICTURE = InputError("strength", 0.5, "needs a picture to start from; pass `image` too")


@pytest.mark.parametrize(
    ("error", "command", "field"),
    [
        (NEEDS_PICTURE, "--strength 0.5: needs a picture to start from; pass --init-image too", "pass init_images too"),
        (CheckpointError("m: leave `variant` out"), "m: leave --variant out", None),
        (CheckpointError("m: private; pass `token`"), "m: private; pass HF_TOKEN in the environment", None),
        (
            NonFiniteError("NaN; use `dtype=float32`, or lower `guidance_scale`"),
            "NaN; use --dtype float32, or lower --guidance",
            "use dtype=float32, or lower cfg_scale",
        ),
        (
            InputError("prompt", "a `width`", "give `prompt_syntax='plain'`"),
            "PROMPT 'a `width`': give --prompt-syntax plain",
            "prompt='a `width`': give prompt_syntax='plain'",
        ),
    ],
)
def test_arguments_have_the_names_that_users_know(error, command, field, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr("jaxl.cli.inspect.in_background", fail)
    assert run(["inspect", "tiny"]) in (1, 2)
    assert capsys.readouterr().err == f"jaxl: error: {command}\n"
    if field is not None:
        assert field in api_error(error, NAMES).detail


@pytest.mark.parametrize(
    "error",
    [InputError("size", (1, 2), "give another"), QueueFullError(3, 7.5), DeadlineError("late"), CheckpointError("bad")],
)
def test_errors_go_to_another_process(error: JaxlError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_extras_are_installed_from_where_jaxl_came_from():
    command = install_command("serve")
    clone = re.search(r"-m pip install '?(.+)\[serve\]", command)
    assert clone is not None
    assert "jaxl" in (Path(clone[1]) / "pyproject.toml").read_text()


def test_extras_of_a_jaxl_that_nobody_knows_the_origin_of(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("jaxl.extras.metadata.distribution", missing)
    assert install_command("serve") == 'pip install ".[serve]" in a clone of jaxl'


def test_nobody_is_told_to_install_a_package_of_this_name():
    root = Path(__file__).parents[1]
    pages = [
        root / "README.md",
        *(root / "docs").glob("*.md"),
        *root.glob("src/**/*.py"),
        *root.glob("benchmarks/*.py"),
    ]
    assert [page.name for page in pages if re.search(r"pip install [\"']?jaxl", page.read_text())] == []
