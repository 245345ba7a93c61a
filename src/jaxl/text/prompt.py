"""Prompts in the syntax of AUTOMATIC1111's web UI: which text holds at which step, and how much each word weighs.

| written | means |
| --- | --- |
| `(a)`, `((a))`, `(a:1.3)` | weight 1.1, 1.21, 1.3; nested brackets multiply |
| `[a]` | weight 1/1.1 |
| `[a:b:0.4]`, `[a:b:8]` | a for the first 40 % of the steps, or the first 8 steps; then b |
| `[b:0.4]`, `[a::0.4]` | b is added, a is removed |
| `[a|b|c]` | a, b and c in turn, one each step |
| `BREAK` | what follows starts a new chunk of tokens |
| `embedding:name` | the textual inversion of this name, as ComfyUI writes it |
| `\\(`, `\\[` | a backslash makes the bracket that follows it text |

A prompt's `Syntax` says how it is read: "a1111" refuses what looks like a mistake (`jaxl.text.strict`), "lenient" takes
as text what does not parse, as the web UI does (`jaxl.text.lenient`), "comfyui" is another program's syntax
(`jaxl.text.comfyui`), and for "literal" and "plain" all of it is text.

Tags, such as `<hypernet:...>`, ask for files that jaxl does not load, and are refused with an InputError.
`jaxl.text.tags` takes those for LoRAs out of a prompt before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from jaxl.errors import InputError
from jaxl.text import comfyui, lenient, strict
from jaxl.text.spans import Sections, Span, Steps

Syntax = Literal["a1111", "lenient", "comfyui", "literal", "plain"]
SYNTAXES: tuple[Syntax, ...] = get_args(Syntax)
MAX_LENGTH = 10_000  # characters, where there is syntax to read

_NETWORK = re.compile(r"\\.|(?P<found><\w+:[^<>]+>)", re.DOTALL)
_AND = re.compile(r"(?<![\\\w])AND\b")


@dataclass(frozen=True)
class _Reader:
    texts: Callable[[str, Steps], list[str]]
    sections: Callable[[str], Sections]


_LITERAL = _Reader(lambda prompt, steps: [prompt], lambda text: [[Span(text, 1.0)]])
_READERS: Mapping[Syntax, _Reader] = {
    "a1111": _Reader(strict.texts, strict.sections),
    "lenient": _Reader(lenient.texts, lenient.sections),
    "comfyui": _Reader(comfyui.texts, comfyui.sections),
    "literal": _LITERAL,
    "plain": _LITERAL,
}


def schedule(
    prompt: str, steps: int | Steps, argument: str = "prompt", syntax: Syntax = "lenient"
) -> tuple[tuple[int, str], ...]:
    """Return the texts of a prompt, each with the first step at which it holds; the first one is 0.

    In `[a:b:when]`, a holds for the first n of the steps and b from then on. A number with a point is a share of them
    and n is int(when * steps); a whole number is n itself. This is A1111's schedule, in which a's `end_at_step` is
    n. (A1111's sampler counts its calls of the network from 0 and compares `call <= end_at_step`, so there each
    switch comes one call late.) `Steps` are those of a second pass.

    Weights and BREAK are left in the texts, for `parse`. Raises InputError, for `argument`, as the syntax has it.
    """
    _check(prompt, argument, syntax)
    with _told(argument, prompt):
        texts = _READERS[syntax].texts(prompt, Steps(steps) if isinstance(steps, int) else steps)
    return tuple((step, text) for step, text in enumerate(texts) if step == 0 or text != texts[step - 1])


def parse(text: str, argument: str = "prompt", syntax: Syntax = "lenient") -> tuple[tuple[Span, ...], ...]:
    """Return the sections of a text of `schedule`. BREAK separates them; each starts a new chunk, and may be empty.

    Neighbouring spans of a section have different weights, or one is an embedding. Raises InputError, for `argument`,
    as the syntax has it.
    """
    _check(text, argument, syntax)
    with _told(argument, text):
        return tuple(map(tuple, _READERS[syntax].sections(text)))


def is_composed(prompt: str) -> bool:
    """Return whether there is an `AND`, with which A1111 composes prompts; the lenient syntax takes it as a word."""
    return _AND.search(prompt) is not None


def _check(prompt: str, argument: str, syntax: Syntax) -> None:
    if not isinstance(prompt, str):
        raise InputError(argument, prompt, f"must be a string, not a {type(prompt).__name__}")
    if _READERS[syntax] is _LITERAL:
        return
    if len(prompt) > MAX_LENGTH:
        remedy = f"{len(prompt)} characters; give at most {MAX_LENGTH}, or `prompt_syntax='literal'`"
        raise InputError(argument, prompt, remedy)
    if syntax == "comfyui":  # where tags are text
        return
    found = next((match for match in _NETWORK.finditer(prompt) if match["found"]), None)
    if found is not None:
        problem = f"{strict.shortened(found['found'])} is for other networks, which prompts cannot load,"
        raise _error(argument, prompt, found.start(), problem, "literal")


@contextmanager
def _told(argument: str, prompt: str) -> Iterator[None]:
    """Turn a BrokenSyntaxError inside it into an InputError for `argument`."""
    try:
        yield
    except strict.BrokenSyntaxError as error:
        raise _error(argument, prompt, error.start, str(error), "lenient") from None


def _error(argument: str, prompt: str, start: int, problem: str, syntax: Syntax) -> InputError:
    remedy = f"write a backslash before what is meant as text, or give `prompt_syntax={syntax!r}`"
    return InputError(argument, prompt, f"{problem} at character {start}; {remedy}")
