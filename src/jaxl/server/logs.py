"""The server's log: one JSON object a line, with the facts of the HTTP request that a line belongs to.

`request` opens such facts, `note` adds to them from wherever the request is handled, and `finish` logs them as one
line. Users' prompts are not among them, unless `facts_of` is asked for them.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGERS = ("jaxl", "uvicorn")
# the beginnings of lines that the command prints, and their levels
PRINTED = {"jaxl: error: ": logging.ERROR, "jaxl: warning: ": logging.WARNING, "jaxl: ": logging.INFO}
# the arguments of `Pipeline.generate` that users write
TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")

log = logging.getLogger("jaxl.server")
_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time, level, logger, message, facts, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Log jaxl's lines and uvicorn's, as JSON, to a stream: standard error by default.

    uvicorn is to be started with `log_config=None, access_log=False`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_add_facts)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def take_over() -> None:
    """Do as `configure`, and let nothing but these lines get to standard error for as long as the process lives.

    Whatever libraries log or print, and uncaught errors, are lines of the log too. Output from outside of
    Python is not caught.
    """
    stream = sys.stderr
    configure(stream)
    logging.getLogger().handlers = logging.getLogger(LOGGERS[0]).handlers
    logging.raiseExceptions = False  # else a log that cannot be written would print for ever
    sys.stderr = Printed(stream)

    def uncaught(args: threading.ExceptHookArgs) -> None:
        where = args.thread.name if args.thread else "unknown"
        error = args.exc_value or args.exc_type()
        log.error("an error that ended the thread %s", where, exc_info=error)

    threading.excepthook = uncaught
    sys.excepthook = lambda _, error, __: log.critical("an error that ended the server", exc_info=error)


class Printed(io.TextIOBase):
    """Replaces standard error, `stream`, and logs each line; of a progress bar only the last state."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.rest = ""
        self.lock = threading.RLock()

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, text: str) -> int:
        with self.lock:
            *lines, rest = (self.rest + text).split("\n")
            self.rest = rest.rpartition("\r")[2]
            for line in lines:
                self._log(line.rstrip("\r").rpartition("\r")[2])
        return len(text)

    def _log(self, line: str) -> None:
        begins = next((each for each in PRINTED if line.startswith(each)), "")
        if line.strip():
            logging.getLogger("jaxl.printed").log(PRINTED.get(begins, logging.INFO), line.removeprefix(begins))


@contextmanager
def request(id: str) -> Iterator[None]:
    """Mark where an HTTP request is handled: lines logged inside have its id, and the facts of `note`."""
    token = _facts.set({"request_id": id})
    try:
        yield
    finally:
        _facts.reset(token)


def note(**facts: Any) -> None:
    """Add facts to those of the HTTP request at hand, if there is one."""
    known = _facts.get()
    if known is not None:
        known.update(facts)


def finish(*, route: str, status: int, seconds: float) -> None:
    """Log that the HTTP request at hand was answered: its facts in one line. `route` is the path of the route."""
    note(route=route, status=status, seconds=round(seconds, 3))
    log.log(logging.ERROR if status >= 500 else logging.INFO, "request")


def facts_of(arguments: Mapping[str, Any], *, prompts: bool = False) -> dict[str, Any]:
    """Return the facts that the log has of arguments of `Pipeline.generate`, with the prompts if asked."""
    facts = {"images": arguments.get("num_images") or 1}
    if arguments.get("width") and arguments.get("height"):
        facts["size"] = f"{arguments['width']}x{arguments['height']}"
    wanted = ("model", "steps", "scheduler", *(TEXTS if prompts else ()))
    return facts | {name: arguments[name] for name in wanted if arguments.get(name) is not None}


def _add_facts(record: logging.LogRecord) -> bool:
    record.facts = _facts.get() or {}
    return True
