"""The words of a pipeline's prompts that stand for vectors: textual inversions, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxl.errors import InputError, nearest
from jaxl.run.model import Model
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.words import Words, read_words
from jaxl.weights.inversions import Inversion


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Textual inversions by name, and for each text encoder their words and the table of all their vectors.

    The tables, float32 [R, width], have the rows of the words.
    """

    inversions: Mapping[str, Inversion]
    words: Mapping[str, Words]
    tables: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: Model, tokenizers: Mapping[str, Tokenizer], inversions: Iterable[Inversion] = ()) -> Lexicon:
        """Return the lexicon of textual inversions. Raises InputError for two that prompts cannot tell apart."""
        by_name: dict[str, Inversion] = {}
        for inversion in inversions:
            if inversion.name in by_name:
                source = by_name[inversion.name].source
                raise InputError("embedding", inversion.name, f"this is what {source} is called already; give another")
            by_name[inversion.name] = inversion
        words, tables = {}, {}
        for encoder, cfg in model.text_encoders.items():
            none = np.zeros((0, cfg.width), np.float32)
            own = {name: inversion.vectors.get(encoder, none) for name, inversion in by_name.items()}
            words[encoder] = read_words(tokenizers[encoder], {name: len(vectors) for name, vectors in own.items()})
            tables[encoder] = np.concatenate([none, *own.values()])
        return cls(by_name, words, tables)

    def without(self, model: Model, tokenizers: Mapping[str, Tokenizer], name: str) -> Lexicon:
        """Return the lexicon without one of its names. Raises InputError if it is not there."""
        if name not in self.inversions:
            raise InputError("embedding", name, f"there is no such embedding; {nearest(name, self.inversions)}")
        return Lexicon.of(model, tokenizers, [each for each in self.inversions.values() if each.name != name])
