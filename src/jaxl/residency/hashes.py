"""The SHA-256 of models' files, by which AUTOMATIC1111's web UI names them, each worked out once and kept."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from jaxl.errors import OutputError
from jaxl.files import cache_folder, write_text


def known_sha256(file: Path) -> str | None:
    """Return the digest of a file if it was worked out before, for the file as it is now. Raises OSError."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        text = _kept(file).read_text()
        return text if re.fullmatch("[0-9a-f]{64}", text) else None
    return None


def sha256(file: Path) -> str:
    """Return the digest of a file: it is read as a whole, about a second for each gigabyte. Raises OSError."""
    known = known_sha256(file)
    if known is not None:
        return known
    kept = _kept(file)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    with suppress(OutputError, RuntimeError):  # it is worked out again then
        write_text(kept, digest)
    return digest


def _kept(file: Path) -> Path:
    """Return where the digest of a file is kept, which depends on its path, time and size."""
    facts = file.stat()
    key = f"{file.resolve()}|{facts.st_mtime_ns}|{facts.st_size}"
    return cache_folder("hashes") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.txt"
