"""Paths as the routes know them, however a proxy or a client writes them."""

from __future__ import annotations

import re

from starlette.types import Scope

from jaxl.errors import InputError

ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)*")


def read_root(text: str) -> str:
    """Read the path under which a proxy has the server; "" if it is /. Raises InputError."""
    root = text.rstrip("/")
    if ROOT.fullmatch(root) is None:
        raise InputError("root_path", text, "give a path alone, such as /jaxl")
    return root


def routed(scope: Scope, root: str) -> Scope:
    """Return the scope with the path below the root, and without extra slashes at its ends.

    A proxy may have left the root in the path or not. Ray has a root of its own, which it leaves in.
    """
    path, outer = scope["path"], scope.get("root_path", "").rstrip("/")
    for prefix in (outer, root):
        if path == prefix or path.startswith(f"{prefix}/"):
            path = path[len(prefix) :]
    return {**scope, "root_path": root or outer, "path": "/" + path.strip("/")}
