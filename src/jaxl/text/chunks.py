"""Texts of any length as chunks, each as long as a text encoder reads.

The rules are those of modules/sd_hijack_clip.py of AUTOMATIC1111's web UI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxl.text.spans import Sections
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.vocabulary import END_OF_WORD

COMMA_REACH = 20

Token = tuple[int, float]


@dataclass(frozen=True, eq=False)
class Chunks:
    """A text as N rows: `ids` int32 [N, T], and the tokens' `weights` float32 [N, T].

    Each row has a beginning token, up to T - 2 tokens of the text, an end token and padding. Tokens that are not of
    the text have weight 1.
    """

    ids: np.ndarray
    weights: np.ndarray


def chunk(tokenizer: Tokenizer, sections: Sections, argument: str = "prompt") -> Chunks:
    """Return the chunks of a parsed text, at least one. Each section begins a chunk, and a long one fills several.

    A full chunk ends behind its last comma, if that is one of its last COMMA_REACH tokens. Each span is tokenized by
    itself. Raises InputError, for `argument`, where a text is not valid Unicode.
    """
    comma = tokenizer.vocabulary.ids.get("," + END_OF_WORD)
    rows: list[list[Token]] = []
    for section in sections:
        tokens = [(id, span.weight) for span in section for id in tokenizer.tokens(span.text, argument).ids]
        rows += _cut(tokens, tokenizer.max_length - 2, comma)
    if len(rows) > 1 and not rows[-1]:
        rows.pop()  # a BREAK at the end adds nothing
    weights = np.ones((len(rows), tokenizer.max_length), np.float32)
    for row, tokens in zip(weights, rows, strict=True):
        row[1 : len(tokens) + 1] = [weight for _, weight in tokens]
    return Chunks(np.stack([tokenizer.frame([id for id, _ in tokens]) for tokens in rows]), weights)


def pad(tokenizer: Tokenizer, chunks: Chunks, n: int) -> Chunks:
    """Return the chunks with empty ones behind them, `n` in all; `n` must not be smaller than their number.

    Tokenizers may need different numbers of chunks for one text; the encoders' results stand side by side.
    """
    missing = n - len(chunks.ids)
    ids = np.repeat(tokenizer.frame([])[None], missing, axis=0)
    ones = np.ones((missing, tokenizer.max_length), np.float32)
    return Chunks(np.concatenate([chunks.ids, ids]), np.concatenate([chunks.weights, ones]))


def _cut(tokens: list[Token], room: int, comma: int | None) -> Iterator[list[Token]]:
    """Yield the tokens in rows of at most `room`; one empty row where there are none."""
    start = 0
    while len(tokens) - start > room:
        end = start + room
        if tokens[end][0] != comma:
            reach = range(end, max(start, end - COMMA_REACH), -1)
            end = next((i for i in reach if tokens[i - 1][0] == comma), end)
        yield tokens[start:end]
        start = end
    yield tokens[start:]
