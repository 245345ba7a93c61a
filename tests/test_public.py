"""The modules that docs/api.md calls public: what they offer, and that pages and examples use no others."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from jaxl import errors

ROOT = Path(__file__).parents[1]
PUBLIC = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def code(file: Path) -> list[str]:
    """Return the Python in a file: all of an example, the blocks of a page."""
    text = file.read_text()
    return [text] if file.suffix == ".py" else re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def imported(source: str) -> set[tuple[str, str]]:
    """Return what a program imports of jaxl, as (module, name); the name is empty for a whole module."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxl":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add((whole, "") if whole in PUBLIC else (node.module or "", alias.name))
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "jaxl"}
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_public_module(name: str) -> None:
    """It says what it offers, and whatever that is has a docstring."""
    module = importlib.import_module(name)
    assert module.__doc__
    assert module.__all__
    for each in module.__all__:
        value = getattr(module, each)
        assert not isinstance(value, ModuleType)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{each} has no docstring"


def test_the_tree_of_errors_has_all_of_them() -> None:
    for name in errors.__all__:
        assert name in (errors.__doc__ or "")


@pytest.mark.parametrize("file", [*PAGES, *EXAMPLES], ids=lambda file: file.name)
def test_only_public_modules_are_imported(file: Path) -> None:
    for source in code(file):
        for module, name in imported(source):
            assert module in PUBLIC, f"{module} is not in docs/api.md"
            assert not name or name in importlib.import_module(module).__all__, f"{module} does not offer {name}"


def test_modules_that_pages_name() -> None:
    """They are there, and so are the names in them."""
    named = {name for page in PAGES for name in re.findall(r"`(jaxl(?:\.\w+)+)", page.read_text())}
    assert len(named) > 3
    for name in named:
        parts = name.split(".")
        places = [ROOT / "src" / Path(*parts[:count]) for count in range(len(parts), 0, -1)]
        files = [each for place in places for each in (place.with_suffix(".py"), place / "__init__.py")]
        file = next(file for file in files if file.exists())
        rest = set(parts) - set(file.relative_to(ROOT / "src").with_suffix("").parts)
        assert rest <= set(re.findall(r"\w+", file.read_text())), f"{name} is not there"
