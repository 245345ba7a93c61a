"""The folder of compiled programs, from which the next process starts.

jax makes a program's key from the program itself (so code of another version makes another), the versions of jaxlib and
of the platform's compiler, the devices (for a CPU, the instructions it has), XLA's flags and the options of the
compiler. Nothing else is compiled in: no entry can be wrong, only unused, and those used longest ago are removed.

Entries are machine code, which jax runs as it finds it. So nobody else may be able to write into the folder.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import filelock
import jax

from jaxl.errors import InputError
from jaxl.files import user_folder

MAX_BYTES = 2**33

ENTRY, USED = "-cache", "-atime"  # the suffixes of jax's two files for each program


def enable_disk_cache() -> None:
    """Keep compiled programs in a folder.

    The folder is the one jax is configured with, as it is; else `$JAXL_CACHE_DIR`, else `jaxl/programs` in the user's
    cache folder. Every part of these last two paths must belong to this user or to root, with no right for others to
    write. Raises InputError if `$JAXL_CACHE_DIR` is not so; programs are not kept, with a warning, if the default is
    not. `$JAX_COMPILATION_CACHE_MAX_SIZE` is a bound in bytes other than `MAX_BYTES`.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    named = os.environ.get("JAXL_CACHE_DIR")
    try:
        folder = _private_folder(Path(named) if named else user_folder() / "programs")
    except (OSError, RuntimeError) as error:  # a RuntimeError where the user's home is not known
        problem = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        if named:
            raise InputError("JAXL_CACHE_DIR", named, f"{problem}; name a folder of your own") from error
        warnings.warn(f"compiled programs are not kept ({problem}); set JAXL_CACHE_DIR", RuntimeWarning, stacklevel=2)
        return
    # where nothing can be locked, as in a read-only folder, jax can keep no bound
    with suppress(OSError, NotImplementedError):
        remove_incomplete(folder)
        if jax.config.jax_compilation_cache_max_size == -1:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def entries(folder: Path) -> Iterator[Path]:
    """Return the programs of a folder."""
    return folder.glob(f"*{ENTRY}")


def clear(folder: Path) -> None:
    """Remove the programs of a folder."""
    with _lock(folder).acquire(timeout=10):
        for file in (*entries(folder), *folder.glob(f"*{USED}")):
            file.unlink(missing_ok=True)


def remove_incomplete(folder: Path) -> None:
    """Remove entries whose writing was cut short, by a kill or a full disk; jax would never write them again.

    jax writes a program and then the time of its use, and holds a lock meanwhile.
    """
    try:
        with _lock(folder).acquire(timeout=0):
            for file in entries(folder):
                if not file.with_name(file.name.removesuffix(ENTRY) + USED).exists():
                    file.unlink(missing_ok=True)
    except filelock.Timeout:  # another process writes; the next one looks again
        pass


def _lock(folder: Path) -> filelock.FileLock:
    """Return the lock that jax holds while it reads or writes."""
    return filelock.FileLock(folder / ".lockfile")


def _private_folder(folder: Path) -> Path:
    """Return the real path of a folder, made if need be. Raises PermissionError if another user could write into it."""
    for each in reversed((folder, *folder.parents)):
        each.mkdir(mode=0o700, exist_ok=True)
    real = folder.resolve()
    if hasattr(os, "getuid"):
        for each in (real, *real.parents):
            _check_private(each, listed=each != real)
    return real


def _check_private(folder: Path, listed: bool) -> None:
    """Raise PermissionError if another user could replace the folder, or put files there.

    In a folder that is `listed` as part of a path, the sticky bit, as /tmp has it, keeps others from replacing files
    that are not theirs.
    """
    info = folder.stat()
    if info.st_uid not in (0, os.getuid()):
        raise PermissionError(errno.EACCES, "it is another user's", str(folder))
    writers = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writers == stat.S_IWGRP and _is_of_one_user(info.st_gid):
        return
    if writers and not (listed and info.st_mode & stat.S_ISVTX):
        raise PermissionError(errno.EACCES, "other users can write to it", str(folder))


def _is_of_one_user(group: int) -> bool:
    """Return whether a group is the user's own: many systems give one to each user, of the same name."""
    import grp
    import pwd

    try:
        name, found = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
