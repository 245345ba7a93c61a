"""What a server says of prompts before they are drawn: how long they are, and what is read otherwise than meant.

The tokens are those of CLIP's own vocabulary, which SDXL and nearly all of its fine-tunes have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jaxl.errors import InputError
from jaxl.server.logs import TEXTS
from jaxl.text.chunks import chunk
from jaxl.text.prompt import Syntax, is_composed, parse, schedule
from jaxl.text.tokenizer import Tokenizer


@cache
def tokenizer() -> Tokenizer:
    """It takes a while to read, so it is read when it is needed first."""
    return Tokenizer.clip()


def length(text: str, syntax: Syntax, steps: int) -> tuple[int, int, str | None]:
    """Tokens and chunks of a text, at the step where they are most, and why it cannot be drawn, if it cannot.

    Where the syntax is broken they are those of the literal text.
    """
    try:
        versions = [parse(now, "text", syntax) for _, now in schedule(text, steps, "text", syntax)]
        error = None
    except InputError as broken:
        versions, error = [parse(text, "text", "literal")], broken.remedy.replace("`", "")
    tokens = [sum(len(tokenizer().tokens(span.text).ids) for part in each for span in part) for each in versions]
    return max(tokens), max(len(chunk(tokenizer(), each).ids) for each in versions), error


def remarks(arguments: Mapping[str, Any]) -> str:
    """What is read otherwise than it may have been meant, of arguments of `Pipeline.generate`; "" for nothing."""
    found = []
    for name in TEXTS:
        match arguments.get("prompt_syntax"), arguments.get(name):
            case "lenient", str(text) if is_composed(text):
                found.append(f"{name}: AND is read as a word")
            case "plain", str(text) if tokenizer().encode(text).lost[0]:
                found.append(f"{name}: cut at {tokenizer().max_length - 2} tokens")
    return "; ".join(found)
