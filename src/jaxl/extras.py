"""The command that installs further parts of jaxl.

No package index has jaxl, and a stranger could put something of this name there. So messages never tell users to
install it by its name: extras come from the folder that this jaxl was installed from.
"""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """Return the command line that adds an extra, such as "serve", to this environment."""
    clone = _clone()
    if clone is None:
        return f'pip install ".[{extra}]" in a clone of jaxl'
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(f'{clone}[{extra}]')}"


def _clone() -> Path | None:
    """Return the folder that jaxl was installed from, if it is still there: pip notes it (PEP 610)."""
    try:
        noted = json.loads(metadata.distribution("jaxl").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    place = urlsplit(str(noted.get("url", "")))
    folder = Path(unquote(place.path))
    return folder if place.scheme == "file" and (folder / "pyproject.toml").is_file() else None
