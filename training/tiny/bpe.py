"""Byte-pair encoding in CLIP's variant: learns a vocabulary from word counts. Standard library only.

The method is that of Sennrich et al. 2016 (arXiv:1508.07909). CLIP's variant works on bytes, each written as one
printable character (the mapping GPT-2 introduced), and marks the last symbol of a word with `</w>`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")  # how CLIP's tokenizer splits lower-case ASCII text
END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

Symbols = tuple[str, ...]
Merge = tuple[str, str]


def byte_symbols() -> dict[int, str]:
    """Byte value -> its character: itself where Latin-1 can print it, else the next one from U+0100 on.

    The printable ones come first, so `!` has index 0.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def learn_merges(word_counts: Mapping[str, int], count: int) -> list[Merge]:
    """Up to `count` merges, each the most frequent pair of neighbours at its turn (of equals the last in order)."""
    characters = byte_symbols()
    words: Counter[Symbols] = Counter()
    for word, occurrences in word_counts.items():
        symbols = [characters[byte] for byte in word.encode()]
        words[*symbols[:-1], symbols[-1] + END] += occurrences
    merges: list[Merge] = []
    while len(merges) < count:
        pairs: Counter[Merge] = Counter()
        for symbols, occurrences in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += occurrences
        if not pairs:
            break
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        merged: Counter[Symbols] = Counter()
        for symbols, occurrences in words.items():
            merged[apply_merge(symbols, merges[-1])] += occurrences
        words = merged
    return merges


def apply_merge(symbols: Symbols, merge: Merge) -> Symbols:
    """The word with every occurrence of the pair, from the left, made one symbol."""
    merged: list[str] = []
    last_is_whole = True  # a merged symbol takes no part in the next pair
    for symbol in symbols:
        if not last_is_whole and (merged[-1], symbol) == merge:
            merged[-1] += symbol
            last_is_whole = True
        else:
            merged.append(symbol)
            last_is_whole = False
    return tuple(merged)


def build_vocabulary(merges: Sequence[Merge]) -> dict[str, int]:
    """Token -> id: the 256 bytes, the 256 bytes that end a word, the merges' results, start, end.

    Raises ValueError where two merges give the same token.
    """
    characters = list(byte_symbols().values())
    tokens = [*characters, *(c + END for c in characters), *(left + right for left, right in merges), BOS, EOS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        twice = next(token for token, n in Counter(tokens).items() if n > 1)
        raise ValueError(f"two merges give the token {twice!r}: train on other captions or with fewer merges")
    return vocabulary
