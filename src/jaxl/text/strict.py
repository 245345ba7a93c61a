"""A1111's syntax, read strictly: what looks like a mistake is an error, never text.

Brackets without a partner, numbers out of range and `AND` are errors. Apart from that the rules are those of the web
UI 1.10, with these differences: BREAK works inside brackets, a backslash before a colon keeps it from making a weight,
and a `|` outside of brackets does not turn off the rest of the syntax.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from jaxl.text.spans import (
    EMBEDDING,
    MAX_DEPTH,
    Sections,
    Span,
    Steps,
    alternating,
    append,
    append_token,
    joined,
    switching,
)

MAX_WEIGHT = 10.0

_FACTORS = {"": 1.0, "(": 1.1, "[": 1 / 1.1}
_CLOSING = {"": "", "(": ")", "[": "]"}
_TOKEN = re.compile(EMBEDDING + r"|\\(?:\w+|.)|\w+|[^\w\\()\[\]:|]+|.", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
# anything meant as a number, right or wrong
_LIKE_A_NUMBER = re.compile(
    r"[+-]?(?:[.,]*[0-9][0-9.,]*(?:e[+-]?[0-9]+)?%?|nan|inf|infinity)", re.IGNORECASE | re.ASCII
)


class BrokenSyntaxError(Exception):
    """There is a `problem` at character `start` of a prompt."""

    def __init__(self, start: int, problem: str):
        super().__init__(problem)
        self.start = start


@dataclass
class _Group:
    """A bracket, opened by `(` or `[` at character `start`, or the whole prompt ("").

    Its own colons and bars are `marks`; `parts` stand between them, one more than marks.
    """

    opening: str
    start: int
    parts: list[list[str | _Group]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        """The text behind the last mark; "" where there is no mark, or a bracket behind it."""
        texts = [item for item in self.parts[-1] if isinstance(item, str)]
        return "".join(texts).strip() if self.marks and len(texts) == len(self.parts[-1]) else ""


def texts(prompt: str, steps: Steps) -> list[str]:
    """Return the text at each step, or the one text of all steps. Raises BrokenSyntaxError."""
    return _texts(_read(prompt), steps)


def sections(text: str) -> Sections:
    """Return the spans of each section. Raises BrokenSyntaxError, also for a weight beyond MAX_WEIGHT."""
    found: list[list[Span]] = [[]]
    _weigh(_read(text), 1.0, found)
    return found


def _read(prompt: str) -> _Group:
    stack = [_Group("", 0)]
    for match in _TOKEN.finditer(prompt):
        token, start, group = match[0], match.start(), stack[-1]
        if token in ("(", "["):
            if len(stack) > MAX_DEPTH:
                raise BrokenSyntaxError(start, f"more than {MAX_DEPTH} brackets inside each other")
            stack.append(_Group(token, start))
        elif token in (")", "]"):
            if token != _CLOSING[group.opening]:
                raise BrokenSyntaxError(start, f"{token!r} does not close a bracket")
            stack.pop()
            stack[-1].parts[-1].append(group)
        elif token in (":", "|"):
            group.marks.append(token)
            group.parts.append([])
        elif token == "\\":
            raise BrokenSyntaxError(start, "a backslash with nothing behind it")
        elif token == "AND":
            raise BrokenSyntaxError(start, "'AND' is for composed prompts, which jaxl lacks,")
        else:
            group.parts[-1].append(token)
    if len(stack) > 1:
        raise BrokenSyntaxError(stack[-1].start, f"{stack[-1].opening!r} is never closed")
    return stack[0]


def _texts(group: _Group, steps: Steps) -> list[str]:
    """Return the text of a group at each step, or the one text of all steps."""
    parts = [joined([i if isinstance(i, str) else _texts(i, steps) for i in part]) for part in group.parts]
    if group.opening == "[" and "|" in group.marks:
        if ":" in group.marks:
            raise BrokenSyntaxError(group.start, "a bracket with both '|' and ':'")
        return alternating(parts, steps)
    if group.opening == "[" and group.marks and (len(parts) > 2 or _LIKE_A_NUMBER.fullmatch(group.last)):
        _check_switch(group, 1 if steps.earlier is None else 2)
        before, after, _ = [[""], *parts][-3:]
        return switching(before, after, group.last, steps)
    marked = [text for part, mark in zip(parts, [*group.marks, ""], strict=True) for text in (part, mark)]
    return joined([group.opening, *marked, _CLOSING[group.opening]])


def _check_switch(group: _Group, most: int) -> None:
    if len(group.parts) > 3:
        raise BrokenSyntaxError(group.start, "more than two colons in [from:to:when]")
    when = group.last
    if not _NUMBER.fullmatch(when) or float(when) < 0 or ("." in when and float(when) > most):
        wanted = "a step such as 8 or a fraction such as 0.4"
        raise BrokenSyntaxError(group.start, f"{shortened(when)} is not {wanted}, as in [from:to:when],")


def _weigh(group: _Group, weight: float, sections: list[list[Span]]) -> None:
    """Append the spans of a group to the last section, or to new ones; `weight` is that of the group's surroundings."""
    parts, marks = group.parts, [*group.marks, ""]
    if group.opening == "(" and group.marks[-1:] == [":"] and _LIKE_A_NUMBER.fullmatch(group.last):
        if not _NUMBER.fullmatch(group.last):
            raise BrokenSyntaxError(
                group.start, f"{shortened(group.last)} is not a weight such as 1.2, as in (text:weight),"
            )
        weight *= float(group.last)
        parts, marks = parts[:-1], [*marks[:-2], ""]
    else:
        weight *= _FACTORS[group.opening]
    if abs(weight) > MAX_WEIGHT:
        raise BrokenSyntaxError(group.start, f"a weight of {weight:.3g}, not from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g},")
    for part, mark in zip(parts, marks, strict=True):
        for item in part:
            if isinstance(item, _Group):
                _weigh(item, weight, sections)
            elif item == "BREAK":
                sections.append([])
            else:
                append_token(sections[-1], item, weight)
        append(sections[-1], mark, weight)


def shortened(text: str) -> str:
    """Return a text for a message, in quotes, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
