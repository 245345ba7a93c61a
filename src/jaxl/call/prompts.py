"""Prompts as chunks of token ids and weights, for each branch of each image at each step."""

from __future__ import annotations

import sys
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from jaxl.call.lexicon import Lexicon
from jaxl.call.region import Region
from jaxl.errors import CheckpointError, InputError, PromptWarning, TruncationWarning
from jaxl.run.bucket import Branch
from jaxl.run.model import Model
from jaxl.text.chunks import OWN, Chunks, chunk, neutral, pad
from jaxl.text.prompt import SYNTAXES, Syntax, is_composed, parse, schedule
from jaxl.text.spans import Steps
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.words import NO_WORDS
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.folder import TOKENIZERS

# by text encoder: ids int32 and weights float32 [1, T], the places bool [1, T] that have vectors of textual inversions,
# and these, float32 [n, width] for n places
Chunk = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]

# by text encoder: the argument that it reads, and its text; None for zeros
Sources = dict[str, tuple[str, str]] | None

# each number of chunks needs a program of its own, and the memory of attention grows with it
MAX_CHUNKS = 16


def open_tokenizers(checkpoint: Checkpoint, model: Model) -> dict[str, Tokenizer]:
    """Return the tokenizer of each text encoder, CLIP's own where the checkpoint has none.

    Raises CheckpointError for one that the encoder has no room for.
    """
    tokenizers = {}
    for encoder, cfg in model.text_encoders.items():
        folder = checkpoint.tokenizers[TOKENIZERS[encoder]]
        pad = "!" if encoder == "text_encoder_2" else "<|endoftext|>"
        tokenizer = Tokenizer.clip(pad) if folder is None else Tokenizer.from_dir(folder)
        # an id or position beyond the table would silently read its last row
        if tokenizer.vocab_size > cfg.vocab_size or tokenizer.max_length > cfg.max_length:
            raise CheckpointError(
                f"{checkpoint.source}: the tokenizer has {tokenizer.vocab_size} ids and {tokenizer.max_length} "
                f"positions, more than the {cfg.vocab_size} and {cfg.max_length} of {encoder}"
            )
        tokenizers[encoder] = tokenizer
    return tokenizers


@dataclass(frozen=True)
class Texts:
    """Texts by version, image and branch, as chunks; None where the embedding is zeros.

    Those of `regions` are by image, region, version and branch. A version begins at each step at which a text changes;
    `versions` are these steps, the first one 0. The branches are the negative prompt, if there is one, the positive
    one, and an empty text, if that was asked for. `inversions` are the names of those that are in them. `empty` is a
    text without words.
    """

    versions: tuple[int, ...]
    chunks: list[list[dict[Branch, list[Chunk] | None]]]
    regions: list[list[tuple[dict[Branch, list[Chunk] | None], ...]]]
    inversions: tuple[str, ...]
    empty: Chunk

    def version(self, step: int) -> int:
        """Return the index of the version that holds at a step."""
        return bisect_right(self.versions, step) - 1

    @property
    def most(self) -> int:
        """The largest number of chunks that a text has."""
        every = (texts for of in (*self.chunks, *(own for image in self.regions for own in image)) for texts in of)
        return max(len(text or [{}]) for texts in every for text in texts.values())


def read_prompts(
    model: Model,
    tokenizers: Mapping[str, Tokenizer],
    lexicon: Lexicon,
    given: Mapping[str, Sequence[str]],
    *,
    batch: int,
    steps: int | Steps,
    syntax: Syntax,
    guided: bool,
    zero_negative: bool,
    perp_neg: bool = False,
    regions: Sequence[Sequence[Region]] = (),
) -> Texts:
    """Return the texts of `batch` images over a schedule of `steps`.

    `given` maps the arguments `prompt`, `prompt_2`, `negative_prompt` and `negative_prompt_2`, where they are, to one
    text for each image; with `zero_negative`, a negative one that is not there is zeros, and so is the empty text that
    comes with `perp_neg`. `regions` are those of each image; one without a negative prompt has its image's. Raises
    InputError for a text that breaks the syntax, or asks for an embedding that the lexicon lacks; warns of words that
    the plain syntax loses, and of an `AND` that the lenient one takes as a word.
    """
    if syntax not in SYNTAXES:
        raise InputError("prompt_syntax", syntax, f"give one of {', '.join(map(repr, SYNTAXES))}")

    used: set[str] = set()

    @cache
    def versions(argument: str, text: str) -> tuple[tuple[int, str], ...]:
        if syntax == "lenient" and is_composed(text):
            _warn(f"{argument} is not composed: AND is read as a word", PromptWarning)
        return schedule(text, steps, argument, syntax)

    @cache
    def encode(encoder: str, argument: str, text: str) -> Chunks:
        if syntax == "plain":
            return _cut(tokenizers[encoder], argument, text)
        words = NO_WORDS if syntax == "literal" else lexicon.words[encoder]
        read = parse(text, argument, syntax)
        chunks = chunk(tokenizers[encoder], read, argument, words, by_words=syntax == "comfyui")
        used.update(words.within(chunks.rows))
        if len(chunks.ids) > MAX_CHUNKS:
            raise InputError(argument, text, f"{len(chunks.ids)} chunks of 75 tokens; at most {MAX_CHUNKS}; shorten it")
        return chunks

    def sources(prefix: str, image: int) -> Sources:
        """Return for each text encoder the argument it reads, and its text; None for zeros."""
        first, second = f"{prefix}prompt", f"{prefix}prompt_2"
        if first not in given and second not in given and zero_negative:
            return None
        shared = (first, given[first][image] if first in given else "")
        own = {"text_encoder": shared, "text_encoder_2": (second, given[second][image]) if second in given else shared}
        return {encoder: own[encoder] for encoder in tokenizers}

    def of_region(region: Region, image: Mapping[Branch, Sources]) -> dict[Branch, Sources]:
        own = {Branch.POSITIVE: region.prompt, Branch.NEGATIVE: region.negative_prompt}
        return {
            branch: shared if own.get(branch) is None else dict.fromkeys(tokenizers, ("regions", own[branch] or ""))
            for branch, shared in image.items()
        }

    def chunks(texts: Sources, step: int) -> list[Chunk] | None:
        if texts is None:
            return None
        encoded = {}
        for encoder, (argument, text) in texts.items():
            current = [version for first, version in versions(argument, text) if first <= step][-1]
            encoded[encoder] = encode(encoder, argument, current)
        n = max(len(each.ids) for each in encoded.values())
        padded = {encoder: pad(tokenizers[encoder], each, n) for encoder, each in encoded.items()}
        return [{encoder: row(encoder, each, i) for encoder, each in padded.items()} for i in range(n)]

    def row(encoder: str, chunks: Chunks, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        ids, weights, rows = (array[i : i + 1] for array in (chunks.ids, chunks.weights, chunks.rows))
        places = rows != OWN
        return ids, weights, places, lexicon.tables[encoder][rows[places]]

    has = {Branch.NEGATIVE: guided, Branch.POSITIVE: True, Branch.EMPTY: perp_neg}
    branches = [branch for branch, there in has.items() if there]
    images = [{branch: sources(branch.prefix, image) for branch in branches} for image in range(batch)]
    parts = [[of_region(region, image) for region in own] for own, image in zip(regions, images, strict=False)]
    every = [*images, *(part for own in parts for part in own)]
    read = {source for image in every for texts in image.values() if texts for source in texts.values()}
    at_steps = sorted({first for source in read for first, _ in versions(*source)} | {0})

    def at_step(image: Mapping[Branch, Sources], at: int) -> dict[Branch, list[Chunk] | None]:
        return {branch: chunks(texts, at) for branch, texts in image.items()}

    texts = [[at_step(image, at) for image in images] for at in at_steps]
    of_regions = [[tuple(at_step(part, at) for at in at_steps) for part in own] for own in parts]
    names = tuple(name for name in lexicon.inversions if name in used)
    empty = {encoder: row(encoder, encode(encoder, "prompt", ""), 0) for encoder in tokenizers}
    return Texts(tuple(at_steps), texts, of_regions, names, empty)


def _cut(tokenizer: Tokenizer, argument: str, text: str) -> Chunks:
    """Return the one chunk of a text in the plain syntax; warn of what is cut."""
    encoded = tokenizer.encode([text], argument)
    if encoded.lost[0]:
        message = f"{argument} is cut at {tokenizer.max_length} tokens; lost: {encoded.lost[0]!r}"
        _warn(message, TruncationWarning)
    return neutral(encoded.ids)


def _warn(message: str, category: type[PromptWarning]) -> None:
    """Warn with the first frame outside of jaxl as the place."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("jaxl."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
