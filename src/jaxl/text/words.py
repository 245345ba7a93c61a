"""Words that stand for vectors, which are those of textual inversions, found in texts by their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxl.errors import InputError, nearest
from jaxl.text.tokenizer import Tokenizer

# the endings of files that are, or are meant to be, textual inversions; names in prompts may have them too
SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class Word:
    """A word by its tokens, and the rows of a table of vectors that it stands for."""

    name: str
    ids: tuple[int, ...]
    rows: range


class Words:
    """Finds words in a tokenizer's tokens, the longest first, as A1111's web UI does.

    Tokens know no upper case, and a word may be a part of a longer one whose tokens are the same.
    """

    def __init__(self, words: Sequence[Word] = ()):
        self.words = tuple(words)
        self._by_name = {word.name.lower(): word for word in words}
        self._by_first: dict[int, list[Word]] = {}
        for word in sorted(words, key=lambda word: -len(word.ids)):
            self._by_first.setdefault(word.ids[0], []).append(word)

    def at(self, ids: Sequence[int], place: int) -> Word | None:
        """Return the longest word whose tokens begin at a place."""
        found = self._by_first.get(ids[place], ())
        return next((word for word in found if tuple(ids[place : place + len(word.ids)]) == word.ids), None)

    def named(self, name: str, argument: str) -> Word:
        """Return the word of a name, in any case, also with a file's ending. Raises InputError, for `argument`."""
        known = name.lower()
        for suffix in SUFFIXES:
            known = known.removesuffix(suffix) if known not in self._by_name else known
        if known in self._by_name:
            return self._by_name[known]
        names = nearest(known, self._by_name) if self.words else "none is loaded"
        literal = "write a backslash before what is meant as text, or give `prompt_syntax='literal'`"
        raise InputError(argument, f"embedding:{name}", f"no embedding has this name; {names}; {literal}")

    def within(self, rows: np.ndarray) -> list[str]:
        """Return the names of those that have any of these rows."""
        there = set(rows.flat)
        return [word.name for word in self.words if not there.isdisjoint(word.rows)]


NO_WORDS = Words()


def read_words(tokenizer: Tokenizer, counts: Mapping[str, int]) -> Words:
    """Return the words of names with so many vectors each, which a table has one after the other.

    Raises InputError for two names that are the same tokens.
    """
    words: dict[tuple[int, ...], Word] = {}
    end = 0
    for name, count in counts.items():
        ids = tuple(tokenizer.tokens(name, "embedding").ids)
        if ids in words:
            raise InputError("embedding", name, f"to a prompt this is the same as {words[ids].name!r}; give another")
        words[ids] = Word(name, ids, range(end, end + count))
        end += count
    return Words(tuple(words.values()))
