"""A1111's syntax as the web UI reads it: what does not parse is text, and nothing is refused.

The rules are those of modules/prompt_parser.py of the web UI 1.10, with these differences: BREAK works inside brackets,
`(a:1.2.3)`, on which it fails, is text, a switch at step 1e999 comes at the last step, and weights stay finite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxl.text.spans import (
    EMBEDDING,
    MAX_DEPTH,
    Piece,
    Sections,
    Span,
    Steps,
    alternating,
    append,
    append_token,
    joined,
    switching,
)

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_CLOSING = {"": "", "(": ")", "[": "]"}
_MAX_WEIGHT = 3.4e38  # the largest in float32, rounded down

# the grammar of schedules
_READABLE = re.compile(r"(?:[^\\]|\\.)*")
_TOKEN = re.compile(rf"{EMBEDDING}|(?:(?!{EMBEDDING})[^\\()\[\]:|]|\\.)+|.", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)

# weights have a grammar of their own
_NAMED = re.compile(EMBEDDING)
_WEIGHED = re.compile(
    rf"\\(?:[\\()\[\]]|embedding\b)?|{EMBEDDING}|[()\[\]]|:\s*([+-]?[.\d]+)\s*\)|(?:(?!{EMBEDDING})[^\\()\[\]:])+|:"
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass
class _Bracket:
    """An open bracket, or the whole prompt (""). Its own colons and bars are `marks`; `parts` stand between them.

    It is `sound` as long as each bracket in it is closed and has a meaning.
    """

    opening: str
    parts: list[list[Piece]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)
    sound: bool = True

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of which it consists where it is text."""
        yield self.opening
        for part, mark in zip(self.parts, [*self.marks, ""], strict=True):
            yield from part
            yield mark

    def closed(self, steps: Steps) -> list[str] | None:
        """Return its text at each step, or the one text of all steps; None where it has no meaning."""
        parts = [joined(part) for part in self.parts]
        when = "".join([piece if isinstance(piece, str) else "[" for piece in self.parts[-1]]).strip()
        match self.opening, "".join(self.marks):
            case _ if not self.sound:
                return None
            case ("(", "" | ":") | ("[", ""):
                return joined([*self.pieces(), _CLOSING[self.opening]])
            case "[", ":" | "::" if _NUMBER.fullmatch(when):
                before, after, _ = [[""], *parts][-3:]
                return switching(before, after, when, steps)
            case "[", marks if ":" not in marks:
                return alternating(parts, steps)
        return None


def texts(prompt: str, steps: Steps) -> list[str]:
    """Return the text at each step, or the one text of all steps.

    A bracket has a meaning where all brackets in it have one. A bar that is not between alternatives, a backslash at
    the end of a line and brackets too deep inside each other leave the whole prompt as it is.
    """
    if not _READABLE.fullmatch(prompt):
        return [prompt]
    open_ = [_Bracket("")]
    for token in _TOKEN.findall(prompt):
        last = open_[-1]
        if token in ("(", "["):
            open_.append(_Bracket(token))
            if len(open_) > MAX_DEPTH + 1:
                return [prompt]
        elif token in (")", "]"):
            if token == _CLOSING[last.opening]:
                ended = [open_.pop()]
                found = last.closed(steps)
            else:  # the wrong partner: no open bracket can be closed any more
                ended, open_, found = open_[1:], open_[:1], None
            if found is not None:
                open_[-1].parts[-1].append(found)
            elif not _as_text(ended, open_[-1]):
                return [prompt]
            else:
                open_[-1].parts[-1].append(token)
        elif token == "|" and last.opening != "[":
            return [prompt]
        elif token in (":", "|") and last.opening:
            last.marks.append(token)
            last.parts.append([])
        else:
            last.parts[-1].append(token)
    return joined(open_[0].parts[0]) if _as_text(open_[1:], open_[0]) else [prompt]


def _as_text(brackets: list[_Bracket], around: _Bracket) -> bool:
    """Put nested brackets that have no meaning into the one around them as text; return False if they hold a bar."""
    for bracket in brackets:
        around.parts[-1] += bracket.pieces()
        around.sound = False
    return not any("|" in bracket.marks for bracket in brackets)


def sections(text: str) -> Sections:
    """Return the spans of each section. A bracket that is never closed holds to the end."""
    events: list[tuple[str, str]] = []  # text, an embedding, or a bracket that opens or closes
    opened: dict[str, list[int]] = {"(": [], "[": []}
    factors: dict[int, float] = {}
    for match in _WEIGHED.finditer(text):
        token = match[0]
        kind = {")": "(", "]": "["}.get(token[-1], "")
        if token in ("(", "["):
            opened[token].append(len(events))
            factors[len(events)] = _FACTORS[token]
            events.append(("open", token))
        elif kind and opened[kind] and not token.startswith("\\"):
            start = opened[kind].pop()
            if match[1] and not _is_number(match[1]):
                events.append(("text", token[:-1]))
            elif match[1]:
                factors[start] = float(match[1])
            events.append(("close", kind))
        elif _NAMED.fullmatch(token):
            events.append(("embedding", token))
        else:
            events.append(("text", token.removeprefix("\\")))

    found: list[list[Span]] = [[]]
    weights = {"(": [1.0], "[": [1.0]}  # of the open brackets, each times those around it
    for i, (event, value) in enumerate(events):
        if event == "open":
            weights[value].append(_bounded(weights[value][-1] * factors[i]))
        elif event == "close":
            weights[value].pop()
        else:
            weight = _bounded(weights["("][-1] * weights["["][-1])
            if event == "embedding":
                append_token(found[-1], value, weight)
                continue
            parts = _BREAK.split(value)
            for n, part in enumerate(parts):
                if n > 0:
                    found.append([])
                    part = part.lstrip()
                append(found[-1], part.rstrip() if n + 1 < len(parts) else part, weight)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bounded(weight: float) -> float:
    return min(max(weight, -_MAX_WEIGHT), _MAX_WEIGHT)
