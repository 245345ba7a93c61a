"""Writes the tables of files in docs/structure.md, from the first line of each module: `python tools/structure.py`."""

from __future__ import annotations

import ast
from pathlib import Path

from marked import rewritten

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "jaxl"
PAGE = ROOT / "docs" / "structure.md"


def first_line(file: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring, f"{file.relative_to(PACKAGE)} has no docstring"
    return docstring.splitlines()[0].removesuffix(".")


def tables() -> str:
    """Return a heading and a table for each folder with modules: the package itself first, then by name."""
    written = []
    for folder in sorted({file.parent for file in PACKAGE.rglob("*.py")}):
        about = "" if folder == PACKAGE else f"{first_line(folder / '__init__.py')}.\n\n"
        files = [file for file in sorted(folder.glob("*.py")) if folder == PACKAGE or file.name != "__init__.py"]
        rows = "".join(f"| `{file.name}` | {first_line(file)} |\n" for file in files)
        written.append(
            f"### `{folder.relative_to(ROOT / 'src')}/`\n\n{about}| file | what it is |\n| --- | --- |\n{rows}"
        )
    return "\n".join(written)


def page(old: str) -> str:
    """Return the page with the tables as they are to be."""
    return rewritten(old, "structure", tables())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(PAGE)
