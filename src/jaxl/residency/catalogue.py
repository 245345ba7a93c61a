"""The models that a server may draw with, by name: those that its operator named, and those of a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxl.errors import InputError, nearest

# seconds for which the names in the folder are taken to be those there are
FRESH = 1.0
INDEX, SUFFIX = "model_index.json", ".safetensors"


class Catalogue:
    """Models by name. Those of the `folder`, which is looked at again and again, are called as their files are.

    It has `.safetensors` files, and folders with a `model_index.json`, also in folders below it.
    """

    def __init__(self, named: Sequence[tuple[str, str]], folder: Path | None = None):
        """`named` are names with what `open_checkpoint` takes. Raises InputError for a name that two have."""
        self._named: dict[str, list[str]] = {}
        for name, source in named:
            if name in self._named:
                remedy = f"{self._named[name][0]} has this name too; give one another name: NAME={source}"
                raise InputError("model", name, remedy)
            self._named[name] = [source]
        self.folder = folder
        if folder is not None and not folder.is_dir():
            raise InputError("model_dir", str(folder), "no such folder")
        self._known: Mapping[str, list[str]] = self._named
        self._looked = float("-inf")

    def sources(self) -> Mapping[str, list[str]]:
        """Return what each name stands for; more than one thing where names in the folder are not unique."""
        if self.folder is not None and time.monotonic() - self._looked > FRESH:
            self._known, self._looked = self._look(self.folder), time.monotonic()
        return self._known

    def source(self, name: str) -> str:
        """Return what a name stands for. Raises InputError for one that is unknown, or stands for two things."""
        known = self.sources()
        if name not in known:
            raise InputError("model", name, nearest(name, known, most=20))
        if len(known[name]) > 1:
            places = ", ".join(os.path.basename(each) for each in known[name])
            raise InputError("model", name, f"{len(known[name])} models are called so: {places}; rename all but one")
        return known[name][0]

    def _look(self, folder: Path) -> Mapping[str, list[str]]:
        found = {name: list(sources) for name, sources in self._named.items()}
        given = {os.path.realpath(source) for sources in found.values() for source in sources}
        for path, folders, files in os.walk(folder):
            if INDEX in files:
                folders.clear()
                models = [path]
            else:
                folders.sort()
                models = [os.path.join(path, file) for file in sorted(files) if file.endswith(SUFFIX)]
            for model in models:
                if os.path.realpath(model) not in given:
                    found.setdefault(os.path.basename(model).removesuffix(SUFFIX), []).append(model)
        return found


def shown(name: str, source: str) -> str:
    """Return what clients are shown for a model's file, in which there is no folder."""
    return f"{name}{SUFFIX}" if source.endswith(SUFFIX) else name
