"""Facts about prompts before they are drawn: their length, and words that may be read otherwise than meant.

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
from jaxl.text.tags import TAGGED, split_tags
from jaxl.text.tokenizer import Tokenizer


@cache
def tokenizer() -> Tokenizer:
    """Return CLIP's tokenizer; it takes a while to read, so it is read at the first call."""
    return Tokenizer.clip()


def length(text: str, syntax: Syntax, steps: int) -> tuple[int, int, str | None]:
    """Return a text's tokens and chunks, at the step where there are most, and why it cannot be drawn, if it cannot.

    Where the syntax is broken they are those of the literal text. Tags that ask for LoRAs are no part of it.
    """
    try:
        text = split_tags(text, "text")[0] if syntax in TAGGED else text
        versions = [parse(now, "text", syntax) for _, now in schedule(text, steps, "text", syntax)]
        error = None
    except InputError as broken:
        versions, error = [parse(text, "text", "literal")], broken.remedy.replace("`", "")
    tokens = [sum(len(tokenizer().tokens(span.text).ids) for part in each for span in part) for each in versions]
    return max(tokens), max(len(chunk(tokenizer(), each).ids) for each in versions), error


def remarks(arguments: Mapping[str, Any]) -> str:
    """Name the prompts, of arguments of `Pipeline.generate`, that may be read otherwise than meant; "" for none."""
    found = []
    for name in TEXTS:
        match arguments.get("prompt_syntax"), arguments.get(name):
            case "lenient", str(text) if is_composed(text):
                found.append(f"{name}: AND is read as a word")
            case "plain", str(text) if tokenizer().encode(text).lost[0]:
                found.append(f"{name}: cut at {tokenizer().max_length - 2} tokens")
    return "; ".join(found)
