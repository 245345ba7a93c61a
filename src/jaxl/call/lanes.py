"""The lanes that a server has where its operator asks for them, because they cost something where no request does."""

from __future__ import annotations

from collections.abc import Iterable

from jaxl.errors import InputError, nearest

LANES = ("pag", "seg", "freeu", "cached", "shaped", "perp_neg", "regions", "seamless", "tiled", "unguided")


def check_lanes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of lanes, each once. Raises InputError for one that is none of LANES."""
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name not in LANES:
            raise InputError("lanes", name, nearest(name, LANES))
    return found
