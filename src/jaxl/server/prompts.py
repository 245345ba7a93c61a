"""Facts about prompts before they are drawn: their length, and words that may be read otherwise than meant.

The tokens are those of CLIP's own vocabulary, which SDXL and nearly all of its fine-tunes have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from jaxl.errors import InputError
from jaxl.server.logs import TEXTS
from jaxl.text.chunks import chunk, units
from jaxl.text.prompt import Syntax, is_composed, parse, schedule
from jaxl.text.spans import Sections
from jaxl.text.tags import read_tags
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.words import NO_WORDS, Words, read_words
from jaxl.weights.inversions import Summary


@cache
def tokenizer() -> Tokenizer:
    """Return CLIP's tokenizer; it takes a while to read, so it is read at the first call."""
    return Tokenizer.clip()


@cache
def words(embeddings: tuple[Summary, ...], syntax: Syntax) -> Words:
    """Return the words of textual inversions, of which there are none where all is text."""
    known = {each.name: each.places for each in embeddings if each.problem is None}
    return NO_WORDS if syntax in ("literal", "plain") else read_words(tokenizer(), known)


def length(text: str, syntax: Syntax, steps: int, embeddings: tuple[Summary, ...] = ()) -> tuple[int, int, str | None]:
    """Return a text's tokens and chunks, at the step where there are most, and why it cannot be drawn, if it cannot.

    Where the syntax is broken they are those of the literal text. Of `embeddings` each place counts. Tags that ask for
    LoRAs are no part of it.
    """
    known = words(embeddings, syntax)
    try:
        text, _ = read_tags(text, syntax, "text")
        versions = [parse(now, "text", syntax) for _, now in schedule(text, steps, "text", syntax)]
        return *_most(versions, known), None
    except InputError as broken:
        return *_most([parse(text, "text", "literal")], NO_WORDS), broken.remedy.replace("`", "")


def _most(versions: Sequence[Sections], known: Words) -> tuple[int, int]:
    """Return the tokens and the chunks of the text that has most of them."""
    tokens = [sum(len(unit) for part in each for unit in units(tokenizer(), part, "text", known)) for each in versions]
    return max(tokens), max(len(chunk(tokenizer(), each, "text", known).ids) for each in versions)


def embeddings_in(arguments: Mapping[str, Any], steps: int, embeddings: tuple[Summary, ...]) -> dict[str, str | None]:
    """Return the textual inversions in the prompts, of arguments of `Pipeline.generate`: their names and hashes.

    What cannot be read is left to the pipeline, which says so.
    """
    syntax = arguments.get("prompt_syntax", "literal")
    known, used = words(embeddings, syntax), set()
    for name in TEXTS if known.words else ():
        text = arguments.get(name) or ""
        with suppress(InputError):
            text, _ = read_tags(text, syntax, name)
            for _, now in schedule(text, arguments.get("steps") or steps, name, syntax):
                used.update(known.within(chunk(tokenizer(), parse(now, name, syntax), name, known).rows))
    return {each.name: each.hash for each in embeddings if each.name in used}


def loras_in(arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the LoRAs that arguments of `Pipeline.generate` ask for.

    Raises InputError for a tag that is not in order.
    """
    _, tags = read_tags(arguments.get("prompt") or "", arguments.get("prompt_syntax", "literal"))
    return [*arguments.get("loras", ()), *(tag.name for tag in tags)]


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
