"""The errors that jaxl raises, as one tree of exceptions.

    JaxlError
    ├── InputError          an argument is wrong: it names the argument, the value and the remedy (also a ValueError)
    ├── CheckpointError     a checkpoint is missing, of another kind, damaged or has the wrong tensors
    ├── OutputError         a result could not be written
    ├── NonFiniteError      a computation gave NaN or infinity; raised instead of returning a black image
    └── RequestError        a request to the engine that is in order was not answered
        ├── QueueFullError      too many wait already; try again after `retry_after` seconds
        ├── DrainingError       the engine is going to stop, and takes nothing new
        ├── UnloadedError       the engine has no model at the moment
        ├── DeadlineError       its deadline has passed
        ├── CancelledError      somebody cancelled it
        └── EngineError         the devices failed

Every message is one line. Where a remedy names an argument, it stands between backticks, alone or with a value: give
`image`, or `prompt_syntax='plain'`. So `respelled` can put the names that users of the command and of an API know.

`PromptWarning` is the one kind of warning: a prompt is not read as it may have been meant.
`TruncationWarning` is one: words of it did not fit.
"""

from __future__ import annotations

import copyreg
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "CancelledError",
    "CheckpointError",
    "DeadlineError",
    "DrainingError",
    "EngineError",
    "InputError",
    "JaxlError",
    "NonFiniteError",
    "OutputError",
    "PromptWarning",
    "QueueFullError",
    "RequestError",
    "TruncationWarning",
    "UnloadedError",
]

ARGUMENT = re.compile(r"`([A-Za-z_]\w*)(?:=([^`]*))?`")


class JaxlError(Exception):
    """Base of all errors that jaxl raises on purpose. They can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild it without `__init__`, whose arguments are not the message."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # pyright: ignore[reportAttributeAccessIssue]


class InputError(JaxlError, ValueError):
    """An argument has a value that cannot work.

    `argument` is the name of the offending argument, as the caller wrote it; `shown` is its `value` in the message, and
    `remedy` says what to do.
    """

    def __init__(self, argument: str, value: object, remedy: str):
        self.argument = argument
        self.value = value
        self.remedy = remedy
        self.shown = " ".join(repr(value).split())  # arrays have several lines
        if len(self.shown) > 120:
            self.shown = self.shown[:117] + "..."
        super().__init__(f"{argument}={self.shown}: {remedy}")


class CheckpointError(JaxlError):
    """A checkpoint cannot be read, is of an unsupported kind, or does not hold what its config promises."""


class OutputError(JaxlError):
    """A result could not be written; nothing half-written is left behind."""


class NonFiniteError(JaxlError):
    """A computation gave NaN or infinity."""


class RequestError(JaxlError):
    """A request that is in order was not answered."""


class QueueFullError(RequestError):
    """Too many wait already; `retry_after` is the estimate of seconds until there is room."""

    def __init__(self, waiting: int, retry_after: float):
        self.retry_after = retry_after
        super().__init__(f"{waiting} images are waiting already; try again in {retry_after:.0f} s")


class DrainingError(RequestError):
    """The engine finishes what it has and takes nothing new."""


class UnloadedError(RequestError):
    """The engine has given its model up, and needs one first."""


class DeadlineError(RequestError):
    """The deadline of a request passed before its images were done."""


class CancelledError(RequestError):
    """A request was cancelled."""


class EngineError(RequestError):
    """The devices failed while they worked on a request."""


class PromptWarning(UserWarning):
    """A prompt may be read otherwise than its author meant it."""


class TruncationWarning(PromptWarning):
    """A prompt was longer than the text encoder reads; the message names the words that were lost."""


def nearest(name: str, known: Iterable[str], most: int | None = None) -> str:
    """Return the sentence that offers the known names, the closest one first: `did you mean 'ddim'? known: ...`.

    At most `most` names are listed.
    """
    known = sorted(known)
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    more = 0 if most is None else max(len(known) - most, 0)
    return f"{hint}known: {', '.join(known[: len(known) - more])}{f' and {more} more' if more else ''}"


def respelled(message: str, spell: Callable[[str, str | None], str]) -> str:
    """Return the message with each argument between backticks as `spell` writes it, from a name and a value or None."""
    return ARGUMENT.sub(lambda match: spell(match[1], match[2]), message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, of Python or of XLA, says that memory is used up."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
