"""The parts of prompts: text with a weight, and text that changes from step to step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_DEPTH = 32  # brackets inside each other

# a textual inversion as ComfyUI writes it; `(embedding:1.2)` is a word with a weight
EMBEDDING = r"\bembedding:(?!\s*[+-]?[.\d]+\s*[)\]])[^\s\\()\[\]:|<>,]+"
_EMBEDDING = re.compile(EMBEDDING)


@dataclass(frozen=True)
class Span:
    """A piece of text without any syntax, and its weight; or the name of a textual inversion, an `embedding`."""

    text: str
    weight: float
    embedding: bool = False


Sections = Sequence[Sequence[Span]]
Piece = str | list[str]  # one text for all steps, or one text for each


@dataclass(frozen=True)
class Steps:
    """The steps of a schedule, `total`, of which those from `first` on are run.

    earlier: those of a first pass, if this is a second one, in which texts go on to change: 0 to 1 are shares of the
    first pass, and 1 to 2 of this one.
    """

    total: int
    first: int = 0
    earlier: int | None = None

    def place(self, when: str) -> int:
        """Return the step at which a text changes: a share, where a number has a point, or a number of steps."""
        share, number = "." in when, float(when)
        if self.earlier is None:
            place = number * self.total if share else number
        else:
            place = self.first + int((number - 1) * (self.total - self.first) if share else number - self.earlier)
        return int(min(max(place, 0), self.total))


def append(section: list[Span], text: str, weight: float) -> None:
    """Add text to the last span of a section, or, if that has another weight or is an embedding, as a new one."""
    if section and section[-1].weight == weight and not section[-1].embedding:
        section[-1] = Span(section[-1].text + text, weight)
    elif text:
        section.append(Span(text, weight))


def append_token(section: list[Span], token: str, weight: float) -> None:
    """Add a token: `embedding:NAME` as a span of its own, and of any other its text, without a backslash before it."""
    if _EMBEDDING.fullmatch(token):
        section.append(Span(token.partition(":")[2], weight, embedding=True))
    else:
        append(section, token.removeprefix("\\"), weight)


def joined(pieces: Sequence[Piece]) -> list[str]:
    """Return pieces put together: one text for all steps, or one for each."""
    lists = [[piece] if isinstance(piece, str) else piece for piece in pieces]
    count = max(map(len, lists), default=1)
    return ["".join([_at(step, texts) for texts in lists]) for step in range(count)]


def alternating(parts: Sequence[list[str]], steps: Steps) -> list[str]:
    """Return the text at each step: the parts in turn."""
    begun = 0 if steps.earlier is None else steps.first
    return [_at(step, parts[(step - begun) % len(parts)]) for step in range(steps.total)]


def switching(before: list[str], after: list[str], when: str, steps: Steps) -> list[str]:
    """Return the text at each step: `before` up to `when`, then `after`."""
    place = steps.place(when)
    return [_at(step, before if step < place else after) for step in range(steps.total)]


def _at(step: int, texts: list[str]) -> str:
    return texts[step] if len(texts) > 1 else texts[0]
