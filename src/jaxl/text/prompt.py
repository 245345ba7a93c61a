"""Prompts in the syntax of AUTOMATIC1111's web UI: which text holds at which step, and how much each word weighs.

| written | means |
| --- | --- |
| `(a)`, `((a))`, `(a:1.3)` | weight 1.1, 1.21, 1.3; nested brackets multiply |
| `[a]` | weight 1/1.1 |
| `[a:b:0.4]`, `[a:b:8]` | a for the first 40 % of the steps, or the first 8 steps; then b |
| `[b:0.4]`, `[a::0.4]` | b is added, a is removed |
| `[a|b|c]` | a, b and c in turn, one each step |
| `BREAK` | what follows starts a new chunk of tokens |
| `\\(`, `\\:`, `\\AND` | a backslash makes the sign or the word that follows it text |

The rules are those of modules/prompt_parser.py of the web UI 1.10, with these differences. What it would take as
text although it looks like syntax is an InputError: brackets without a partner, numbers out of range, and `AND` and
`<lora:...>`, which jaxl lacks. BREAK works inside brackets, a backslash before a colon keeps it from making a weight,
and a `|` outside of brackets does not turn off the rest of the syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from jaxl.errors import InputError

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 32
MAX_WEIGHT = 10.0

_FACTORS = {"": 1.0, "(": 1.1, "[": 1 / 1.1}
_CLOSING = {"": "", "(": ")", "[": "]"}
_TOKEN = re.compile(r"\\(?:\w+|.)|<\w+:[^>]+>|\w+|[^\w\\()\[\]:|<]+|.", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
# what is meant as a number, right or wrong
_LIKE_A_NUMBER = re.compile(
    r"[+-]?(?:[.,]*[0-9][0-9.,]*(?:e[+-]?[0-9]+)?%?|nan|inf|infinity)", re.IGNORECASE | re.ASCII
)

Error = Callable[[int, str], InputError]


@dataclass(frozen=True)
class Span:
    """A piece of text without any syntax, and its weight."""

    text: str
    weight: float


@dataclass
class _Group:
    """A bracket, opened by `(` or `[` at character `start`, or the whole prompt ("").

    `parts` are what stands between its own colons and bars, which are the `marks`; one part more than marks.
    """

    opening: str
    start: int
    parts: list[list[str | _Group]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        """What stands behind the last mark; "" where there is no mark, or a bracket behind it."""
        texts = [item for item in self.parts[-1] if isinstance(item, str)]
        return "".join(texts).strip() if self.marks and len(texts) == len(self.parts[-1]) else ""


def schedule(prompt: str, steps: int, argument: str = "prompt") -> tuple[tuple[int, str], ...]:
    """The texts of a prompt, each with the first step (from 0) at which it holds; the first one is 0.

    In `[a:b:when]`, a holds for the first n of the steps and b from then on. A number with a point is a fraction from 0
    to 1 and n is int(when * steps); a whole number is n itself. This is A1111's schedule, in which a's `end_at_step` is
    n. (A1111's sampler counts its calls of the network from 0 and compares `call <= end_at_step`, so there each
    switch comes one call late.)

    Weights and BREAK are left in the texts, for `parse`. Raises InputError, for `argument`, where the syntax is broken.
    """
    texts = _texts(_read(prompt, argument), steps, partial(_error, argument, prompt))
    return tuple((step, text) for step, text in enumerate(texts) if step == 0 or text != texts[step - 1])


def parse(text: str, argument: str = "prompt") -> tuple[tuple[Span, ...], ...]:
    """A text of `schedule` as sections, which BREAK separates; each starts a new chunk, and may be empty.

    Neighbouring spans of a section have different weights. Raises InputError, for `argument`, where the syntax is
    broken or a weight is not a number from -MAX_WEIGHT to MAX_WEIGHT.
    """
    sections: list[list[Span]] = [[]]
    _weigh(_read(text, argument), 1.0, sections, partial(_error, argument, text))
    return tuple(map(tuple, sections))


def _read(prompt: str, argument: str) -> _Group:
    if not isinstance(prompt, str):
        raise InputError(argument, prompt, f"must be a string, not a {type(prompt).__name__}")
    if len(prompt) > MAX_LENGTH:
        remedy = f'{len(prompt)} characters; give at most {MAX_LENGTH}, or prompt_syntax="plain"'
        raise InputError(argument, prompt, remedy)
    error = partial(_error, argument, prompt)
    stack = [_Group("", 0)]
    for match in _TOKEN.finditer(prompt):
        token, start, group = match[0], match.start(), stack[-1]
        if token in ("(", "["):
            if len(stack) > MAX_DEPTH:
                raise error(start, f"more than {MAX_DEPTH} brackets inside each other")
            stack.append(_Group(token, start))
        elif token in (")", "]"):
            if token != _CLOSING[group.opening]:
                raise error(start, f"{token!r} does not close a bracket")
            stack.pop()
            stack[-1].parts[-1].append(group)
        elif token in (":", "|"):
            group.marks.append(token)
            group.parts.append([])
        elif token == "\\":
            raise error(start, "a backslash with nothing behind it")
        elif token == "AND":
            raise error(start, "'AND' is for composed prompts, which jaxl lacks,")
        elif token.startswith("<") and len(token) > 1:
            raise error(start, f"{_short(token)} is for other networks, which prompts cannot load,")
        else:
            group.parts[-1].append(token)
    if len(stack) > 1:
        raise error(stack[-1].start, f"{stack[-1].opening!r} is never closed")
    return stack[0]


def _texts(group: _Group, steps: int, error: Error) -> list[str]:
    """What a group amounts to at each step, or once, if that never changes."""
    parts = [_joined([[i] if isinstance(i, str) else _texts(i, steps, error) for i in part]) for part in group.parts]
    if group.opening == "[" and "|" in group.marks:
        if ":" in group.marks:
            raise error(group.start, "a bracket with both '|' and ':'")
        return [_at(step, parts[step % len(parts)]) for step in range(steps)]
    if group.opening == "[" and group.marks and (len(parts) > 2 or _LIKE_A_NUMBER.fullmatch(group.last)):
        switch = _switch(group, steps, error)
        before, after, _ = [[""], *parts][-3:]
        return [_at(step, before if step < switch else after) for step in range(steps)]
    marked = [text for part, mark in zip(parts, [*group.marks, ""], strict=True) for text in (part, [mark])]
    return _joined([[group.opening], *marked, [_CLOSING[group.opening]]])


def _joined(pieces: list[list[str]]) -> list[str]:
    count = max(map(len, pieces), default=1)
    return ["".join([_at(step, piece) for piece in pieces]) for step in range(count)]


def _at(step: int, texts: list[str]) -> str:
    return texts[step] if len(texts) > 1 else texts[0]


def _switch(group: _Group, steps: int, error: Error) -> int:
    """The first step (from 0) of what `[from:to:when]` switches to; `steps`, if it never does."""
    if len(group.parts) > 3:
        raise error(group.start, "more than two colons in [from:to:when]")
    when = group.last
    if not _NUMBER.fullmatch(when) or float(when) < 0 or ("." in when and float(when) > 1):
        wanted = "a step such as 8 or a fraction such as 0.4"
        raise error(group.start, f"{_short(when)} is not {wanted}, as in [from:to:when],")
    return int(min(steps, float(when) * steps if "." in when else float(when)))


def _weigh(group: _Group, weight: float, sections: list[list[Span]], error: Error) -> None:
    """Append the spans of a group, whose surroundings have a weight, to the last of the sections, or to new ones."""
    parts, marks = group.parts, [*group.marks, ""]
    if group.opening == "(" and group.marks[-1:] == [":"] and _LIKE_A_NUMBER.fullmatch(group.last):
        if not _NUMBER.fullmatch(group.last):
            raise error(group.start, f"{_short(group.last)} is not a weight such as 1.2, as in (text:weight),")
        weight *= float(group.last)
        parts, marks = parts[:-1], [*marks[:-2], ""]
    else:
        weight *= _FACTORS[group.opening]
    if abs(weight) > MAX_WEIGHT:
        raise error(group.start, f"a weight of {weight:.3g}, not from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g},")
    for part, mark in zip(parts, marks, strict=True):
        for item in part:
            if isinstance(item, _Group):
                _weigh(item, weight, sections, error)
            elif item == "BREAK":
                sections.append([])
            else:
                _append(sections[-1], item.removeprefix("\\"), weight)
        _append(sections[-1], mark, weight)


def _append(section: list[Span], text: str, weight: float) -> None:
    if section and section[-1].weight == weight:
        section[-1] = Span(section[-1].text + text, weight)
    elif text:
        section.append(Span(text, weight))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _error(argument: str, prompt: str, start: int, problem: str) -> InputError:
    remedy = 'write a backslash before what is meant as text, or give prompt_syntax="plain"'
    return InputError(argument, prompt, f"{problem} at character {start}; {remedy}")
