"""A model of several: opened once, with its parameters on the devices, in host memory or on disk."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxl.backend import PipelineBackend
from jaxl.engine.backend import Place, Served
from jaxl.errors import CheckpointError, JaxlError
from jaxl.nn.layers import Params
from jaxl.pipeline import ShowProgress
from jaxl.residency import parts
from jaxl.residency.catalogue import SUFFIX, shown
from jaxl.residency.hashes import known_sha256, sha256
from jaxl.residency.policy import Standing

log = logging.getLogger(__name__)


class Resident:
    """One version of a model's files, and where its parameters are.

    here: they are on the devices, or on their way there or from there. open: they are there, and images may begin.
    host: its networks in host memory, by component. parts: the bytes of its networks, by their digests. using: what
    uses the parameters beside the running batches. used, came: when it was last needed, and came onto the devices.
    error: why it did not come, until those who waited have heard of it.
    """

    def __init__(self, name: str, source: str, backend: PipelineBackend, pinned: bool):
        self.name = name
        self.source = source
        self.backend = backend
        self.pinned = pinned
        self.here = self.open = False
        self.host: Mapping[str, Params] = {}
        self.digests: Mapping[str, str] = {}
        # until its networks are read, none is known to be equal to another's
        self.parts: Mapping[str, int] = {str(id(self)): sum(map(parts.nbytes, backend.pipe.exact.shapes.values()))}
        self.using: set[Any] = set()
        self.used = self.came = time.monotonic()
        self.swaps: Counter[str] = Counter()
        self.swap_seconds = self.last_swap = 0.0
        self.error: JaxlError | None = None
        self._read_ahead = False
        self._files = backend.pipe.checkpoint.files()
        self._version = _version(self._files)

    @property
    def least(self) -> Mapping[str, int]:
        """The bytes of networks that it needs in any case: of one that was never read, those of the U-Net."""
        unet = self.backend.pipe.exact.shapes["unet"]
        return self.parts if self.digests else {str(id(self)): parts.nbytes(unet)}

    @property
    def loaded(self) -> bool:
        return bool(self.backend.params)

    @property
    def is_current(self) -> bool:
        """Whether its files are as they were when it was opened."""
        return _version(self._files) == self._version

    @property
    def place(self) -> Place:
        return "device" if self.loaded else "host" if self.host else "disk"

    @cached_property
    def sha256(self) -> str | None:
        """The digest of its file; None if it has several."""
        with suppress(OSError):  # it is gone, or on a disk that fails
            return sha256(Path(self.source)) if self.source.endswith(SUFFIX) else None
        return None

    def standing(self, first: int | None, busy: bool, now: float) -> Standing[Resident]:
        busy = busy or bool(self.using) or not self.loaded
        return Standing(
            self, self.parts, self.here, self.pinned, busy, first, self.used, now - self.came, self.last_swap
        )

    def load(self, others: Iterable[Resident], progress: ShowProgress | None = None) -> None:
        """Bring the parameters onto the devices; networks that `others` have there too are theirs.

        From disk, programs that no other model has compile meanwhile. Raises CheckpointError, also for files that were
        replaced, and whatever the devices do.
        """
        backend, began = self.backend, time.perf_counter()
        if self.host:
            place, shapes = "host", backend.pipe.programs.shapes
            loaded = {name: parts.on_devices(tree, shapes[name]) for name, tree in self.host.items()}
        else:
            place, compiling = "disk", backend.begin()
            self._check_current()
            loaded = backend.pipe.load_params(progress)
            self._check_current()
            for program in compiling:
                program.result()
            self.digests = parts.digests(loaded)
            self.parts = {self.digests[name]: parts.nbytes(tree) for name, tree in loaded.items()}
        held = {
            digest: other.backend.params[name]
            for other in others
            if other.loaded
            for name, digest in other.digests.items()
        }
        backend.take_params({name: held.get(self.digests[name], tree) for name, tree in loaded.items()})
        self._read_ahead = False
        self.came, self.last_swap = time.monotonic(), time.perf_counter() - began
        self.swaps[place] += 1
        self.swap_seconds += self.last_swap
        log.info("%s came from %s in %.2f s", self.name, place, self.last_swap)

    def read_ahead(self) -> None:
        """Have the system begin to read its files, while others draw, so that loading finds them in memory."""
        if self.place == "disk" and not self._read_ahead and hasattr(os, "posix_fadvise"):
            self._read_ahead = True
            for file in self._files:
                with suppress(OSError), file.open("rb") as opened:  # loading says what is wrong
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def keep(self, others: Iterable[Resident]) -> None:
        """Have the parameters in host memory too; networks that `others` have there are theirs."""
        held = {digest: other.host[name] for other in others if other.host for name, digest in other.digests.items()}
        params = self.backend.params
        self.host = self.host or {
            name: held.get(self.digests[name]) or parts.on_host(tree) for name, tree in params.items()
        }

    def leave(self) -> None:
        """Give up the parameters on the devices."""
        self.backend.take_params({})
        self.here = self.open = False

    def served(self) -> Served:
        return served(self.name, self.source, self.place, self.parts, dict(self.swaps), self.swap_seconds)

    def _check_current(self) -> None:
        if not self.is_current:
            raise CheckpointError(f"{self.name}: its file was replaced meanwhile; ask again")


def served(name: str, source: str, *how: Any) -> Served:
    """Return what clients are told of a model, and `how` it stands."""
    file = Path(source)
    known = known_sha256(file) if source.endswith(SUFFIX) and file.exists() else None
    return Served(name, shown(name, source), known, *how)


def _version(files: Iterable[Path]) -> tuple[Any, ...]:
    """Return what changes when files are replaced or go."""
    found = []
    for file in files:
        try:
            facts = os.stat(file)
        except OSError:
            found.append((file, None))
        else:
            found.append((file, facts.st_mtime_ns, facts.st_size))
    return tuple(found)
