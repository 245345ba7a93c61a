"""The tests of one engine's server, with two replicas behind it."""

import importlib.util
from pathlib import Path
from typing import Any

MODULES = ("openai", "a1111", "huggingface")


def contents(name: str) -> dict[str, Any]:
    """What a module of tests has: tests, fixtures and helpers."""
    path = Path(__file__).parents[1] / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(f"replicas_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if not key.startswith("__")}


for _name in MODULES:
    _found = contents(_name)
    _twice = {key for key in _found.keys() & globals().keys() if key.lower().startswith("test")}
    assert _twice <= {"TestClient"}, f"these tests would hide others: {_twice}"
    globals().update(_found)
