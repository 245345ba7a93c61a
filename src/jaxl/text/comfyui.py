"""ComfyUI's syntax: round brackets weigh, and everything else is text.

The rules are those of `comfy/sd1_clip.py` of https://github.com/comfyanonymous/ComfyUI: `(a)` weighs 1.1 times what is
around it, and `(a:1.3)` weighs 1.3 whatever is around it. Square brackets, BREAK and tags are text, as is a bracket
that is never closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jaxl.text.spans import EMBEDDING, MAX_DEPTH, Sections, Span, Steps

_FACTOR = 1.1
_MOST_WEIGHT = 3.4e38  # in float32
_ESCAPED = {r"\(": "\0", r"\)": "\1"}
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?\s*", re.IGNORECASE)
_NAMED = re.compile(rf"({EMBEDDING})")


def texts(prompt: str, steps: Steps) -> list[str]:
    """Return the one text of all steps."""
    return [prompt]


def sections(text: str) -> Sections:
    """Return the spans of the one section."""
    for written, mark in _ESCAPED.items():
        text = text.replace(written, mark)
    return [[*_spans(text, 1.0, 0)]]


def _spans(text: str, weight: float, depth: int) -> Iterator[Span]:
    for part in _parts(text):
        if not (part.startswith("(") and part.endswith(")") and len(part) > 1) or depth == MAX_DEPTH:
            yield from _named(part, weight)
            continue
        inner, colon, given = part[1:-1].rpartition(":")
        if colon and inner and _NUMBER.fullmatch(given):
            yield from _spans(inner, max(min(float(given), _MOST_WEIGHT), -_MOST_WEIGHT), depth + 1)
        else:
            yield from _spans(part[1:-1], min(weight * _FACTOR, _MOST_WEIGHT), depth + 1)


def _parts(text: str) -> Iterator[str]:
    """Yield brackets that are closed, with all in them, and the text between them."""
    start = depth = 0
    for i, character in enumerate(text):
        if character == "(":
            if depth == 0:
                yield text[start:i]
                start = i
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start : i + 1]
                start = i + 1
    yield text[start:]


def _named(text: str, weight: float) -> Iterator[Span]:
    """Yield text, and textual inversions by their names."""
    for written, mark in _ESCAPED.items():
        text = text.replace(mark, written[1:])
    for place, part in enumerate(_NAMED.split(text)):
        if part:
            yield Span(part.partition(":")[2], weight, embedding=True) if place % 2 else Span(part, weight)
