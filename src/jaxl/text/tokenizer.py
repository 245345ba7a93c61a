"""Prompts as token ids: CLIP's byte-level byte-pair encoding.

The text is composed (NFC), its white space made single spaces, lowered, split into words, digits and signs, and each of
them encoded by merges (Radford et al. 2021, arXiv:2103.00020, section 2.4; Sennrich et al. 2016, arXiv:1508.07909).
The steps are those of `CLIPTokenizer` in transformers 5, made of the same parts of the `tokenizers` library, so that
the ids agree on every text. A special token written in a prompt becomes that token; in SDXL's second tokenizer `!` is
one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from jaxl.errors import CheckpointError, InputError
from jaxl.text.vocabulary import END_OF_WORD, EOS, Vocabulary, clip_vocabulary, read_vocabulary, write_vocabulary

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, without beginning, end and padding: ids, and where each starts in the text (characters)."""

    ids: list[int]
    starts: list[int]


@dataclass(frozen=True)
class Encoded:
    """Prompts as a text encoder reads them.

    `ids`: int32 [B, T], each row the beginning token, the prompt's tokens, the end token and padding.
    `lost`: for each prompt the end that did not fit, as it was written; empty where all of it did.
    """

    ids: np.ndarray
    lost: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """One of a checkpoint's tokenizers; make it with `from_dir` or `clip`."""

    vocabulary: Vocabulary
    backend: tokenizers.Tokenizer = field(repr=False)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a checkpoint's tokenizer folder: its config, and `tokenizer.json` or `vocab.json` with `merges.txt`.

        Raises CheckpointError naming the folder and what is missing, damaged or not supported.
        """
        folder = Path(path)
        vocabulary = read_vocabulary(folder)
        try:
            return cls(vocabulary, _backend(vocabulary))
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"{folder}: the tokenizer's merges do not fit its vocabulary: {error}") from error

    @classmethod
    def clip(cls, pad: Literal["<|endoftext|>", "!"] = EOS) -> Tokenizer:
        """Return CLIP's own tokenizer, shipped with jaxl; SDXL's second text encoder is padded with `!`."""
        vocabulary = clip_vocabulary(pad)
        return cls(vocabulary, _backend(vocabulary))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer folder that `from_dir` and transformers read. Raises OutputError where that fails."""
        write_vocabulary(self.vocabulary, Path(path))

    @property
    def bos_id(self) -> int:
        return self.vocabulary.special["bos_token"]

    @property
    def eos_id(self) -> int:
        return self.vocabulary.special["eos_token"]

    @property
    def pad_id(self) -> int:
        return self.vocabulary.special["pad_token"]

    @property
    def max_length(self) -> int:
        """Length T of a row of ids, the beginning and the end token included (77)."""
        return self.vocabulary.max_length

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the text encoder's embedding table must hold as many."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, prompts: str | Sequence[str], argument: str = "prompt") -> Encoded:
        """Return the token ids of one prompt (B = 1) or of a list of them, cut and padded to `max_length`.

        Raises InputError, for `argument`, where a prompt is not a string or not valid Unicode.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        if not isinstance(prompts, list | tuple):
            raise InputError(argument, prompts, "must be a string or a list of strings")
        room = self.max_length - 2
        ids = np.empty((len(prompts), self.max_length), np.int32)
        lost = []
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = self.tokens(prompt, argument)
            row[:] = self.frame(tokens.ids[:room])
            lost.append(prompt[tokens.starts[room] :] if len(tokens.ids) > room else "")
        return Encoded(ids, tuple(lost))

    def tokens(self, text: str, argument: str = "prompt") -> Tokens:
        """Return all tokens of a text, however long, with nothing added. Raises InputError as `encode` does."""
        if not isinstance(text, str):
            raise InputError(argument, text, f"must be a string, not a {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(argument, text, f"half a surrogate pair at character {error.start}; remove it") from None
        encoding = self.backend.encode(text, add_special_tokens=False)
        return Tokens(encoding.ids, [start for start, _ in encoding.offsets])

    def frame(self, ids: Sequence[int]) -> np.ndarray:
        """Return int32 [T]: the beginning token, `ids` (T - 2 at most), the end token, padding."""
        row = np.full(self.max_length, self.pad_id, np.int32)
        row[: len(ids) + 2] = [self.bos_id, *ids, self.eos_id]
        return row


def _backend(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(vocabulary.ids),
            merges=list(vocabulary.merges),
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
            unk_token=vocabulary.added[vocabulary.special["unk_token"]].content,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_tokens([token for _, token in sorted(vocabulary.added.items())])
    return backend
