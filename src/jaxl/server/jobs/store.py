"""The jobs of a server on its disk: a row of SQLite for each, and files with what was asked and answered.

A file is written before the row that tells of it, and removed after: so a job is there whole or not at all, whenever
the process ends. Which jobs are being drawn is nothing that a disk needs to know: one without an end is drawn (again).
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jaxl.engine.lane import PRIORITY_SECONDS
from jaxl.errors import InputError, OutputError
from jaxl.files import write_bytes

ASKED, ANSWER = "asked", "answer"

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, path TEXT NOT NULL, media_type TEXT NOT NULL, digest TEXT NOT NULL,
    seed INTEGER NOT NULL, created REAL NOT NULL, due REAL NOT NULL, size INTEGER NOT NULL, webhook TEXT,
    starts INTEGER NOT NULL DEFAULT 0, ended REAL, status INTEGER, warning TEXT, fetched INTEGER NOT NULL DEFAULT 0,
    told INTEGER NOT NULL DEFAULT 0, tell_at REAL
);
CREATE INDEX IF NOT EXISTS in_order ON jobs (due, created) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS by_end ON jobs (ended) WHERE ended IS NOT NULL;
CREATE INDEX IF NOT EXISTS to_tell ON jobs (tell_at) WHERE tell_at IS NOT NULL;
"""


@dataclass(frozen=True)
class Job:
    """A request that was accepted for an `owner`: a POST to `path` with a body of `media_type` and `digest`.

    seed: of its first image, so that drawn again it is the same. created, ended: seconds since 1970. due: the time by
    which jobs are in order, earlier with more priority. size: bytes of its files. webhook: is told of its end. starts:
    how often it was begun. status: of its answer. warning: `Service`'s remarks on it. fetched: whether somebody has its
    answer. told: how often the webhook was tried.
    """

    id: str
    owner: str
    path: str
    media_type: str
    digest: str
    seed: int
    created: float
    due: float
    size: int
    webhook: str | None = None
    starts: int = 0
    ended: float | None = None
    status: int | None = None
    warning: str | None = None
    fetched: bool = False
    told: int = 0


NAMES = ", ".join(field.name for field in fields(Job))


class JobTakenError(OutputError):
    """Another job has the id."""


class NoRoomError(OutputError):
    """The jobs that there are take all the space that they may."""


class JobStore:
    """The jobs in a folder, which one process at a time may use; any of its threads may.

    gib: GiB that all files may take together. An answer that somebody has fetched gives way to others where there is no
    room; nothing else does before `forget_old`.

    Methods raise OutputError where the disk does not do what they need.
    """

    def __init__(self, folder: Path, gib: float):
        """Raises InputError for a folder that cannot be used."""
        self.folder = folder
        self.most = round(gib * 2**30)
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._claim = FileLock(folder / "lock")
            self._claim.acquire(timeout=0)
            self._rows = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
            self._rows.execute("PRAGMA journal_mode = WAL")
            self._rows.execute("PRAGMA synchronous = FULL")
            self._rows.executescript(SCHEMA)
        except Timeout:
            raise InputError("jobs", str(folder), "another server has this folder; give each its own") from None
        except (OSError, sqlite3.Error) as error:
            said = getattr(error, "strerror", None) or error
            raise InputError("jobs", str(folder), f"{said}; give a folder that can be written") from None
        self._sweep()

    def close(self) -> None:
        with self._lock:
            self._rows.close()
            self._claim.release()

    def add(self, job: Job, body: bytes) -> Job:
        """Accept a job with its body, and return it; if the same was asked under its id before, return that one.

        Raises JobTakenError where the id is another's or another request's, and NoRoomError.
        """
        with self._writing() as gone:
            known = self._find(job.id)
            if known is not None:
                if (known.owner, known.path, known.digest) != (job.owner, job.path, job.digest):
                    raise JobTakenError(f"there is another job with the id {job.id}; give another id")
                return known
            self._check_room(len(body), gone)
            self._write(job.id, ASKED, body)
            values = [getattr(job, field.name) for field in fields(Job)]
            self._rows.execute(f"INSERT INTO jobs ({NAMES}) VALUES ({','.join('?' * len(values))})", values)
        return job

    def find(self, id: str, owner: str) -> Job | None:
        """Return an owner's job."""
        with self._reading():
            job = self._find(id)
        return job if job is not None and job.owner == owner else None

    def of(self, owner: str, most: int) -> list[Job]:
        """Return an owner's latest jobs, the latest first."""
        return self._select("owner = ? ORDER BY created DESC LIMIT ?", owner, most)

    def next(self, ids: Collection[str], owners: Collection[str]) -> Job | None:
        """Return the first in order of those without an end, but for these ids and owners."""
        without = f"id NOT IN ({_marks(ids)}) AND owner NOT IN ({_marks(owners)})"
        found = self._select(f"ended IS NULL AND {without} ORDER BY due, created LIMIT 1", *ids, *owners)
        return found[0] if found else None

    def ahead(self, job: Job) -> int:
        """Return the number of jobs without an end that come before one."""
        with self._reading():
            query = "SELECT count(*) FROM jobs WHERE ended IS NULL AND (due, created) < (?, ?)"
            return self._rows.execute(query, (job.due, job.created)).fetchone()[0]

    def counts(self) -> tuple[int, int, int]:
        """Return the number of jobs without an end, of those with one, and the bytes of all."""
        with self._reading():
            query = "SELECT count(*), count(ended), coalesce(sum(size), 0) FROM jobs"
            jobs, ended, size = self._rows.execute(query).fetchone()
        return jobs - ended, ended, size

    def check_room(self) -> None:
        """Raise NoRoomError if there is none for another answer; fetched ones make some."""
        with self._writing() as gone:
            self._check_room(1, gone)

    def begin(self, job: Job) -> bytes | None:
        """Count a start, and return what was asked; None if somebody has removed the file."""
        with self._writing():
            self._rows.execute("UPDATE jobs SET starts = starts + 1 WHERE id = ?", (job.id,))
        with self._reading():
            file = self._file(job.id, ASKED)
            return file.read_bytes() if file.exists() else None

    def put_back(self, job: Job) -> None:
        """Count a start no more, which the server itself has put off."""
        with self._writing():
            self._rows.execute("UPDATE jobs SET starts = starts - 1 WHERE id = ?", (job.id,))

    def end(self, job: Job, status: int, answer: bytes, warning: str | None = None) -> None:
        """Give a job its answer, which stays, unless it has one or is gone."""
        with self._writing() as gone:
            now = time.time()
            if (known := self._find(job.id)) is None or known.ended is not None:
                return
            self._write(job.id, ANSWER, answer)
            self._rows.execute(
                "UPDATE jobs SET ended = ?, status = ?, warning = ?, size = ?, tell_at = ? WHERE id = ?",
                (now, status, warning, len(answer), None if job.webhook is None else now, job.id),
            )
            gone.append(self._file(job.id, ASKED))

    def answer(self, job: Job) -> bytes:
        """Return a job's answer, and note that it was fetched, if the disk can still be written."""
        try:
            answer = self._file(job.id, ANSWER).read_bytes()
        except OSError as error:
            raise OutputError(f"the answer of job {job.id} cannot be read ({error.strerror})") from error
        with suppress(OutputError), self._writing():
            self._rows.execute("UPDATE jobs SET fetched = 1 WHERE id = ? AND NOT fetched", (job.id,))
        return answer

    def forget(self, job: Job) -> None:
        with self._writing() as gone:
            self._forget(job.id, gone)

    def forget_old(self, seconds: float) -> None:
        """Forget the jobs that ended so long ago."""
        with self._writing() as gone:
            query = "SELECT id FROM jobs WHERE ended IS NOT NULL AND ended < ?"
            for (id,) in self._rows.execute(query, (time.time() - seconds,)).fetchall():
                self._forget(id, gone)

    def to_tell(self, most: int) -> list[Job]:
        """Return jobs whose webhooks are to be told now."""
        return self._select("tell_at IS NOT NULL AND tell_at <= ? ORDER BY tell_at LIMIT ?", time.time(), most)

    def told(self, job: Job, again: float | None) -> None:
        """Count a try to tell a webhook; the next one is so many seconds from now, None is never."""
        with self._writing():
            at = None if again is None else time.time() + again
            self._rows.execute("UPDATE jobs SET told = told + 1, tell_at = ? WHERE id = ?", (at, job.id))

    def _find(self, id: str) -> Job | None:
        row = self._rows.execute(f"SELECT {NAMES} FROM jobs WHERE id = ?", (id,)).fetchone()
        return None if row is None else Job(*row)

    def _select(self, which: str, *values: Any) -> list[Job]:
        with self._reading():
            return [Job(*row) for row in self._rows.execute(f"SELECT {NAMES} FROM jobs WHERE {which}", values)]

    def _check_room(self, needed: int, gone: list[Path]) -> None:
        """Forget fetched answers, the oldest first, until there is room. Raises NoRoomError if there are too few."""
        used = self._rows.execute("SELECT coalesce(sum(size), 0) FROM jobs").fetchone()[0]
        if used + needed <= self.most:
            return
        query = "SELECT id, size FROM jobs WHERE fetched AND ended IS NOT NULL ORDER BY ended"
        for id, size in self._rows.execute(query).fetchall():
            self._forget(id, gone)
            used -= size
            if used + needed <= self.most:
                return
        raise NoRoomError(f"jobs take all of their {self.most / 2**30:.3g} GiB; fetch answers, or delete jobs")

    def _forget(self, id: str, gone: list[Path]) -> None:
        self._rows.execute("DELETE FROM jobs WHERE id = ?", (id,))
        gone += [self._file(id, kind) for kind in (ASKED, ANSWER)]

    def _file(self, id: str, kind: str) -> Path:
        """Return the place of a file. An id may be a client's own words, so it is no name of a file."""
        return self.folder / "files" / f"{hashlib.sha256(id.encode()).hexdigest()}.{kind}"

    def _write(self, id: str, kind: str, data: bytes) -> None:
        try:
            write_bytes(self._file(id, kind), data)
        except OutputError as error:  # which names the file, and clients hear of it
            raise _refused(error.__cause__ or error) from error

    def _sweep(self) -> None:
        """Remove the files of which no row tells, as a process that was killed may have left them."""
        with suppress(OutputError, OSError), self._writing():
            ended = self._rows.execute("SELECT id, ended IS NOT NULL FROM jobs").fetchall()
            wanted = {self._file(id, ANSWER if done else ASKED) for id, done in ended}
            for file in (self.folder / "files").iterdir():
                if file not in wanted:
                    file.unlink()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, sqlite3.Error) as error:
                raise _refused(error) from error

    @contextmanager
    def _writing(self) -> Iterator[list[Path]]:
        """A transaction: all of it, or nothing. Files in the list that it yields are removed after it."""
        gone: list[Path] = []
        with self._reading():
            self._rows.execute("BEGIN IMMEDIATE")
            try:
                yield gone
                self._rows.execute("COMMIT")
            except BaseException:
                if self._rows.in_transaction:
                    self._rows.execute("ROLLBACK")
                raise
            for file in gone:
                file.unlink(missing_ok=True)


def new_job(
    id: str, owner: str, path: str, media_type: str, body: bytes, seed: int, priority: int, webhook: str | None
) -> Job:
    """Return a job that is accepted now."""
    now = time.time()
    digest = hashlib.sha256(body).hexdigest()
    due = now - PRIORITY_SECONDS * priority
    return Job(id, owner, path, media_type, digest, seed, now, due, len(body), webhook)


def _marks(values: Collection[str]) -> str:
    return ",".join("?" * len(values))


def _refused(error: BaseException) -> OutputError:
    return OutputError(f"the disk of the jobs did not do it ({getattr(error, 'strerror', None) or error})")
