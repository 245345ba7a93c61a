"""Folders for files that jaxl keeps, and writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from jaxl.errors import OutputError


def user_folder() -> Path:
    """Return jaxl's part of the user's cache folder. Raises RuntimeError where the user's home is not known."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxl"


def cache_folder(name: str) -> Path:
    """Return the folder for one kind of files: in `$JAXL_CACHE_DIR`, else in the user's cache folder."""
    return Path(os.environ.get("JAXL_CACHE_DIR") or user_folder()) / name


def write_text(path: Path, text: str) -> None:
    """Write a file as `write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, and make its folder if need be. Raises OutputError."""
    temporary = path.with_name(f".jaxl-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a machine that stops could leave an empty file under the name
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
