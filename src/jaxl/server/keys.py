"""The keys of clients: those without a name, and those of a file, each with a name and limits.

A file of keys has a line for each: its name, the SHA-256 of the key, and its limits, such as
`ada 2c26b4... images_per_minute=60 at_once=4 sizes=1024x1024,832x1216 models=sdxl priority=2`. Empty lines and those
that begin with # are passed over. Keys are made by `jaxl keys add` and have 256 random bits, so a plain digest tells
nobody what they are.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jaxl.call.sizes import Size, read_size
from jaxl.errors import InputError, nearest

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")
# what metrics call the keys that have no name
NAMELESS = "api-key"
PRIORITIES = range(-10, 11)

log = logging.getLogger("jaxl.server")


@dataclass(frozen=True)
class Key:
    """A client's key, and what its requests may ask for; None and () are no limit.

    images_per_minute, at_once: images that may begin within a minute, and that may wait or be in the making.
    sizes: those it may have drawn. models: the names that it may ask for. priority: of its requests that say none, and
    the highest that they may say.
    """

    name: str
    digest: str
    images_per_minute: int | None = None
    at_once: int | None = None
    sizes: tuple[Size, ...] = ()
    models: tuple[str, ...] = ()
    priority: int | None = None

    @property
    def owner(self) -> str:
        """Whose requests and jobs are: a key that is replaced by another of its name has those of the first."""
        return self.digest if self.name == NAMELESS else self.name

    @property
    def limited(self) -> bool:
        """Whether it has any limit."""
        return any(getattr(self, name) not in (None, ()) for name in READERS)

    def priority_of(self, asked: int | None) -> int:
        """Return the priority of a request that asks for one, or for none."""
        if self.priority is None:
            return asked or 0
        return self.priority if asked is None else min(asked, self.priority)


# who calls a server without keys
ANYBODY = Key("", "")


@dataclass
class KeyRing:
    """The keys that open a server: `given` ones without limits, and those of the file at `path`, if there is one.

    The file is read anew whenever it has changed. If that fails, the keys of before are kept, and the log says why.
    Raises InputError if it cannot be read to begin with.
    """

    given: Sequence[str] = ()
    path: Path | None = None
    _keys: list[Key] = field(default_factory=list, init=False)
    _seen: object = field(default=None, init=False)  # the state of the file that was read last

    def __post_init__(self) -> None:
        self._seen, self._keys = self._state(), self._read()

    def __bool__(self) -> bool:
        """Whether clients need a key."""
        return bool(self.given) or self.path is not None

    def find(self, secret: str) -> Key | None:
        """Return the key that a client has sent, or None; the time it takes tells nothing about those there are."""
        digest = digest_of(secret)
        matches = [key for key in self.known() if secrets.compare_digest(digest, key.digest)]
        return matches[0] if matches else None

    def of(self, owner: str) -> Key | None:
        """Return the key of an owner, as it is now; None once it is gone."""
        if not self:
            return ANYBODY if owner == ANYBODY.owner else None
        return next((key for key in self.known() if key.owner == owner), None)

    def known(self) -> list[Key]:
        """Return the keys, after a look at the file."""
        if self.path is not None and (state := self._state()) != self._seen:
            self._seen = state
            try:
                self._keys = self._read()
            except InputError as error:
                log.error("the keys were not read anew, and the old ones are kept: %s", error)
            else:
                log.info("read the keys anew: there are %d", len(self._keys))
        return self._keys

    def _state(self) -> object:
        try:
            found = None if self.path is None else self.path.stat()
        except OSError as error:
            return error.errno
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self) -> list[Key]:
        named = [] if self.path is None else read_file(self.path)
        return [Key(NAMELESS, digest_of(secret)) for secret in self.given] + named


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_file(path: Path) -> list[Key]:
    """Return the keys of a file. Raises InputError, which names the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError("keys", str(path), f"{error.strerror}; `jaxl keys add` makes one") from None
    except UnicodeDecodeError:
        raise InputError("keys", str(path), "not text in UTF-8; `jaxl keys add` makes a file of keys") from None
    found: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = read_line(line)
            if any(key.name == other.name or key.digest == other.digest for other in found.values()):
                raise ValueError(f"{key.name!r} or its key is there already; remove one")
        except ValueError as error:
            raise InputError("keys", f"{path}, line {number}", str(error)) from None
        found[key.name] = key
    return list(found.values())


def read_line(line: str) -> Key:
    """Return the key of a line. Raises ValueError, which does not quote the line: it may have a key in it."""
    name, _, rest = line.strip().partition(" ")
    digest, *limits = rest.split() or [""]
    if NAME.fullmatch(name) is None or name == NAMELESS:
        raise ValueError(f"a name has 1 to 64 letters, digits, '.', '_' or '-', and is not {NAMELESS!r}")
    if DIGEST.fullmatch(digest) is None:
        raise ValueError("after the name comes the key's SHA-256, 64 digits in hex; `jaxl keys add` writes it")
    read: dict[str, Any] = {}
    for text in limits:
        limit, mark, value = text.partition("=")
        if limit not in READERS:
            raise ValueError(f"{limit[:40]!r}: {nearest(limit, READERS)}")
        if limit in read:
            raise ValueError(f"{limit} is there twice")
        try:
            read[limit] = READERS[limit](value if mark else "")
        except ValueError as error:
            raise ValueError(f"{limit}={value[:40]!r}: {error}") from None
    return Key(name, digest, **read)


def write_line(key: Key) -> str:
    """Return the line of a key, which `read_line` reads back."""
    limits = {name: getattr(key, name) for name in READERS}
    given = [f"{name}={_text(value)}" for name, value in limits.items() if value not in (None, ())]
    return " ".join([key.name, key.digest, *given])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join("x".join(map(str, each)) if isinstance(each, tuple) else each for each in value)
    return str(value)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise ValueError("give a whole number from 1")
    return int(text)


def _sizes(text: str) -> tuple[Size, ...]:
    sizes = tuple(size for each in text.split(",") if (size := read_size(each)) is not None)
    if len(sizes) <= text.count(","):
        raise ValueError("give sizes such as 1024x1024,832x1216")
    return sizes


def _names(text: str) -> tuple[str, ...]:
    if not all(text.split(",")):
        raise ValueError("give names with commas between them")
    return tuple(text.split(","))


def _priority(text: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,2}", text) is None or int(text) not in PRIORITIES:
        raise ValueError(f"give a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}")
    return int(text)


READERS: Mapping[str, Callable[[str], Any]] = {
    "images_per_minute": _count,
    "at_once": _count,
    "sizes": _sizes,
    "models": _names,
    "priority": _priority,
}
assert list(READERS) == [each.name for each in fields(Key)][2:]
