"""A checkpoint written as a folder in diffusers' layout, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxl.errors import OutputError
from jaxl.weights.entries import Entries, entries_of_params, write_entries
from jaxl.weights.folder import weight_file

Tell = Callable[[int, int], None]


def save_checkpoint(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    params: Mapping[str, Mapping[str, Any]],
    tokenizers: Mapping[str, Callable[[Path], None]],
) -> None:
    """Write configs, parameters (in their own dtype, as checkpoints have them) and tokenizers: see `save_folder`."""
    save_folder(folder, configs, entries_of_params(params), tokenizers)


def save_folder(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    networks: Mapping[str, Entries],
    tokenizers: Mapping[str, Callable[[Path], None]],
    tell: Tell | None = None,
) -> None:
    """Write configs, the networks' entries by component, and tokenizers.

    One tensor is on the host at a time; `tell` is called with how many are written, and how many are to be. Everything
    is written in or near `folder` first and then moved there. Raises OutputError if `folder` exists and is not empty,
    or if writing fails; nothing is left behind then.
    """
    with unfinished(folder) as new:
        _write(new, configs, networks, tokenizers, counting(tell, sum(map(len, networks.values()))))
        place = folder.absolute()
        if new.parent == place:  # it may be a disk's root or a shell's folder, so it is filled rather than replaced
            for part in sorted(new.iterdir(), key=Path.is_file):  # the index last
                part.rename(place / part.name)
        else:
            new.chmod(0o755)
            place.parent.mkdir(parents=True, exist_ok=True)
            new.rename(place)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a folder in or near `path` for what is to be moved there; what is left in it is removed.

    Raises OutputError as `check_new` does, and where writing fails.
    """
    check_new(path)
    new = None
    try:
        place = path.absolute()
        near = next(path for path in (place, *place.parents) if path.exists())
        new = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=near))
        yield new
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raise OutputError if there is something at `path` already, other than an empty folder for a folder."""
    try:
        if is_single_file(path):
            if path.exists():
                raise OutputError(f"{path}: exists already; choose another name, or remove it")
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path}: exists already; choose another folder, or empty it")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def is_single_file(path: Path) -> bool:
    """Return whether what is written there is a single file."""
    return path.suffix.lower() == ".safetensors"


def counting(tell: Tell | None, total: int) -> Callable[[], None]:
    """Return what tells of one tensor more, out of so many."""
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if tell is not None:
            tell(done, total)

    return one_more


def _write(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    networks: Mapping[str, Entries],
    tokenizers: Mapping[str, Callable[[Path], None]],
    tell: Callable[[], None],
) -> None:
    _write_json(folder / "model_index.json", configs["model_index"])
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    for component, entries in networks.items():
        (folder / component).mkdir()
        _write_json(folder / component / "config.json", configs[component])
        write_entries(folder / component / weight_file(component, None), entries, tell)
    for name, save in tokenizers.items():
        save(folder / name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")
