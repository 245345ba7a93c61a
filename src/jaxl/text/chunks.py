"""Texts of any length as chunks, each as long as a text encoder reads.

The rules are those of modules/sd_hijack_clip.py of AUTOMATIC1111's web UI.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxl.text.spans import Sections, Span
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.vocabulary import END_OF_WORD
from jaxl.text.words import NO_WORDS, Words

COMMA_REACH = 20
LONG_WORD = 8

# The id at places of vectors: every vocabulary has it, and it is below the end token's, by which encoders may find the
# end. And the row of places that have their token's own vector.
PLACE, OWN = 0, -1


class Token(NamedTuple):
    """A token by its id, its weight, and the row of the vector that it has, `OWN` for its own."""

    id: int
    weight: float
    row: int = OWN


@dataclass(frozen=True, eq=False)
class Chunks:
    """A text as N rows: `ids` int32 [N, T], and the tokens' `weights` float32 [N, T] and `rows` int32 [N, T].

    Each row has a beginning token, up to T - 2 tokens of the text, an end token and padding. Tokens that are not of
    the text have weight 1. Where a word stands for vectors, `rows` says which of them, and elsewhere it is `OWN`.
    """

    ids: np.ndarray
    weights: np.ndarray
    rows: np.ndarray


def chunk(
    tokenizer: Tokenizer,
    sections: Sections,
    argument: str = "prompt",
    words: Words = NO_WORDS,
    *,
    by_words: bool = False,
) -> Chunks:
    """Return the chunks of a parsed text, at least one. Each section begins a chunk, and a long one fills several.

    A full chunk ends behind its last comma, if that is one of its last COMMA_REACH tokens; or, `by_words`, between
    words, of which those of LONG_WORD tokens and more are split, as ComfyUI does. Each span is tokenized by itself.
    What a word stands for is not split: where it finds no room, the next chunk begins with it.

    Raises InputError, for `argument`, where a text is not valid Unicode, and for an embedding that is not a word.
    """
    comma = None if by_words else tokenizer.vocabulary.ids.get("," + END_OF_WORD)
    rows: list[list[Token]] = []
    for section in sections:
        read = _by_words if by_words else units
        rows += _filled(read(tokenizer, section, argument, words), tokenizer.max_length - 2, comma)
    if len(rows) > 1 and not rows[-1]:
        rows.pop()  # a BREAK at the end adds nothing
    found = neutral(np.stack([tokenizer.frame([token.id for token in tokens]) for tokens in rows]))
    for i, tokens in enumerate(rows):
        found.weights[i, 1 : len(tokens) + 1] = [token.weight for token in tokens]
        found.rows[i, 1 : len(tokens) + 1] = [token.row for token in tokens]
    return found


def units(
    tokenizer: Tokenizer, section: Iterable[Span], argument: str = "prompt", words: Words = NO_WORDS
) -> Iterator[list[Token]]:
    """Yield what stays together of a section: a token, or all places of a word, which may be none."""
    for span in section:
        if span.embedding:
            yield [Token(PLACE, span.weight, row) for row in words.named(span.text, argument).rows]
            continue
        ids, place = tokenizer.tokens(span.text, argument).ids, 0
        while place < len(ids):
            word = words.at(ids, place)
            if word is None:
                yield [Token(ids[place], span.weight)]
                place += 1
            else:
                yield [Token(PLACE, span.weight, row) for row in word.rows]
                place += len(word.ids)


def _by_words(tokenizer: Tokenizer, section: Iterable[Span], argument: str, words: Words) -> Iterator[list[Token]]:
    """Yield the tokens of each word, one by one those of a long one."""
    for span in section:
        for text in [span.text] if span.embedding else span.text.split():
            parts = [*units(tokenizer, [replace(span, text=text)], argument, words)]
            whole = [token for part in parts for token in part]
            yield from parts if len(whole) >= LONG_WORD else [whole]


def neutral(ids: np.ndarray) -> Chunks:
    """Return chunks of ids [N, T] with neutral weights, which have their own vectors."""
    return Chunks(ids, np.ones(ids.shape, np.float32), np.full(ids.shape, OWN, np.int32))


def pad(tokenizer: Tokenizer, chunks: Chunks, n: int) -> Chunks:
    """Return the chunks with empty ones behind them, `n` in all; `n` must not be smaller than their number.

    Tokenizers may need different numbers of chunks for one text; the encoders' results stand side by side.
    """
    missing = neutral(np.repeat(tokenizer.frame([])[None], n - len(chunks.ids), axis=0))
    return Chunks(
        np.concatenate([chunks.ids, missing.ids]),
        np.concatenate([chunks.weights, missing.weights]),
        np.concatenate([chunks.rows, missing.rows]),
    )


def _filled(units: Iterable[list[Token]], room: int, comma: int | None) -> Iterator[list[Token]]:
    """Yield the tokens in rows of at most `room`; one empty row where there are none."""
    row: list[Token] = []
    for unit in filter(None, units):
        if len(row) == room and unit[0].id != comma:
            reach = range(room, max(0, room - COMMA_REACH), -1)
            end = next((i for i in reach if row[i - 1].id == comma), room)
            yield row[:end]
            row = row[end:]
        if len(row) + len(unit) > room:
            yield row
            row = []
        row = row + unit
    yield row
