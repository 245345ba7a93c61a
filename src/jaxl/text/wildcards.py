"""Wildcards in prompts: `__name__` stands for a line of the file `name.txt` in a folder, chosen by the image's seed."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from jaxl.errors import InputError, nearest

WILDCARD = re.compile(r"__([\w./ -]+?)__")
MOST_BYTES = 16 * 2**20
# how often lines may name other files; deeper ones go round in circles
MOST_DEPTH = 16


@dataclass(frozen=True)
class Wildcards:
    """The files of a folder, in UTF-8: a line is a choice, but for empty ones and those that begin with `#`.

    `__animals/cats__` is `animals/cats.txt`. A line may have wildcards itself. Raises InputError, naming `wildcards`,
    for what is no folder.
    """

    folder: Path
    _read: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise InputError("wildcards", str(self.folder), "there is no such folder")

    def expand(self, text: str, seed: int, argument: str = "prompt") -> str:
        """Return a text with a line for each wildcard: the same for the same seed, argument and files.

        Raises InputError, naming the argument, for a wildcard that has no file, with the nearest name that has, and for
        files that name each other in a circle.
        """
        # a text as a seed is hashed, so that seeds beside each other choose independently
        chance = random.Random(f"{argument} {seed}")

        def chosen(match: re.Match[str]) -> str:
            lines = self._lines(match[1], argument)
            return lines[int(chance.random() * len(lines))]

        for _ in range(MOST_DEPTH):
            if not WILDCARD.search(text):
                return text
            text = WILDCARD.sub(chosen, text)
        raise InputError(argument, text[:200], "its wildcards name each other in a circle")

    def _lines(self, name: str, argument: str) -> list[str]:
        if name not in self._read:
            # names are looked up, so that none leads out of the folder
            files = {path.relative_to(self.folder).with_suffix("").as_posix(): path for path in self._files()}
            if name not in files:
                raise InputError(argument, f"__{name}__", nearest(name, files) if files else "there are no .txt files")
            self._read[name] = _lines_of(files[name])
        return self._read[name]

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.txt") if path.is_file())


def _lines_of(file: Path) -> list[str]:
    """Return the choices in a file. Raises InputError if there is none, or if it is no text."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError("wildcards", str(file), f"at most {MOST_BYTES} bytes are read")
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError("wildcards", str(file), f"{what}; give a text file") from None
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError("wildcards", str(file), "it has no line to choose")
    return found
