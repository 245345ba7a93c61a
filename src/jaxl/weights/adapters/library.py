"""The adapters that can be asked for by name: those that were added, and those of folders, read when asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxl.errors import CheckpointError, InputError
from jaxl.weights.adapters.adapter import Adapter
from jaxl.weights.adapters.description import Description
from jaxl.weights.adapters.latest import Latest
from jaxl.weights.store import read_metadata

MAX_BYTES = 2**31  # of the folder's files on the host; six of rank 64 for SDXL
MAX_DESCRIPTIONS = 2000

# what ends a name in a prompt's tag
MARKS = "<>:"

log = logging.getLogger(__name__)


class Library(Mapping[str, Adapter]):
    """Adapters by name. Those of the `folders` are the files in them and below them, without `.safetensors`.

    Folders are looked at each time, so files may come and go; one that is replaced is read again. `read` makes an
    adapter of a name and a file, with the options `reading` of `read_adapter`; what is left out of a file is logged.
    `shown` is how errors call a file: a server does not tell where it lies.
    """

    def __init__(self, read: Callable[..., Adapter], folders: Iterable[Path] = (), shown: Callable[[Path], str] = str):
        self.folders = [*folders]
        self.reading: Mapping[str, Any] = {}
        self.shown = shown
        self._read = read
        self._added: dict[str, Adapter] = {}
        self._latest: Latest[Adapter] = Latest(MAX_BYTES, lambda adapter: adapter.nbytes)
        self._descriptions: Latest[Description] = Latest(MAX_DESCRIPTIONS)

    def add(self, adapter: Adapter) -> None:
        """Add an adapter under its name. Raises InputError where another one has the name."""
        known = self._added.get(check_tag_name("name", adapter.name))
        if known is not None and known.identity != adapter.identity:
            raise InputError("name", adapter.name, f"{known.source} has this name; remove it first")
        self._added[adapter.name] = adapter

    def remove(self, name: str) -> None:
        """Forget an adapter that was added. Images that have it already keep it."""
        self._added.pop(name, None)

    def held(self) -> list[str]:
        """Return the names of the adapters whose tensors are in memory."""
        return list(dict.fromkeys([*self._added, *(adapter.name for adapter in self._latest.values())]))

    def files(self) -> dict[str, list[Path]]:
        """Return the folders' files by name, those that a prompt can name; more than one where names are not unique."""
        found: dict[str, list[Path]] = {}
        for file in (file for folder in self.folders for file in sorted(folder.rglob("*.safetensors"))):
            if file.is_file() and not set(file.stem) & set(MARKS):
                found.setdefault(file.stem, []).append(file)
        return found

    def __getitem__(self, name: str) -> Adapter:
        """Return an adapter. Raises KeyError for an unknown name, CheckpointError for what cannot be used."""
        if name in self._added:
            return self._added[name]
        files = self.files()[name]
        if len(files) > 1:
            names = ", ".join(map(self.shown, files))
            raise CheckpointError(f"{len(files)} files are called {name}: {names}; rename all but one")
        (file,) = files
        try:
            return self._latest.get(_version(file), lambda: self._made(name, file))
        except OSError as error:
            raise CheckpointError(f"{self.shown(file)}: cannot be read ({error.strerror})") from error
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(file), self.shown(file))) from None

    def _made(self, name: str, file: Path) -> Adapter:
        adapter = self._read(name, file, **self.reading)
        if left := adapter.left:
            log.warning("%s: %d of its tensors left out, such as %s", self.shown(file), len(left), left[0])
        return adapter

    def descriptions(self) -> dict[str, Description]:
        """Return what the metadata of each adapter says, by its name; nothing for a file that cannot be read."""
        added = {name: adapter.description for name, adapter in self._added.items()}
        return {name: self._description(files[0]) for name, files in self.files().items()} | added

    def _description(self, file: Path) -> Description:
        with suppress(OSError, CheckpointError):  # whoever asks for it is told
            return self._descriptions.get(_version(file), lambda: Description((file.name,), read_metadata(file)))
        return Description((file.name,), {})

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._added, *self.files()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._added or name in self.files()


def _version(file: Path) -> tuple[Path, int, int, int]:
    """Return what is another value once the file is replaced. Raises OSError."""
    state = file.stat()
    return file, state.st_mtime_ns, state.st_size, state.st_ino


def check_folder(argument: str, name: str | os.PathLike[str]) -> Path:
    """Return the folder of this name. Raises InputError if there is none."""
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(argument, str(name), "there is no such folder; give one with .safetensors files")
    return folder


def check_tag_name(argument: str, name: object) -> str:
    """Return a name that can stand in a prompt's tag. Raises InputError for others."""
    if not isinstance(name, str) or not name.strip() or name != name.strip() or set(name) & set(MARKS):
        raise InputError(
            argument, name, "give a name without colons, `<` and `>`, which cannot stand in a prompt's tag"
        )
    return name
