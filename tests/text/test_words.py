"""Words that stand for vectors. What is expected is what A1111's rules say, written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxl.errors import InputError
from jaxl.text.chunks import OWN, PLACE, Chunks, chunk, pad
from jaxl.text.prompt import parse
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.words import Words, read_words

CAT, DOG, COMMA = 2368, 1929, 267


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def clip(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.clip(request.param)


@pytest.fixture(scope="module")
def words(clip: Tokenizer) -> Words:
    """Rows 0 and 1, 2 to 4, 5, 6 to 65, and one without any."""
    return read_words(
        clip, {"EasyNegative": 2, "bad hands": 3, "bad": 1, "long": 60, "none": 0, "Style (v2).1": 2, "dog": 1}
    )


def read(clip: Tokenizer, words: Words, text: str, **how: Any) -> list[list[int]]:
    """Ids of the text's tokens by chunk, and where a vector stands its row below zero: -1 for row 0, -2 for row 1."""
    chunks: Chunks = chunk(clip, parse(text, **how), words=words)
    assert chunks.rows.dtype == np.int32
    assert chunks.rows.shape == chunks.ids.shape
    assert (chunks.ids[chunks.rows != OWN] == PLACE).all()
    marked = np.where(chunks.rows == OWN, chunks.ids, -1 - chunks.rows)
    ends = [row.tolist().index(clip.eos_id) for row in marked]
    return [row[1:end].tolist() for row, end in zip(marked, ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat EasyNegative dogs", [CAT, -1, -2, 3255]),
        ("easynegative", [-1, -2]),
        ("EASYNEGATIVE, cat", [-1, -2, COMMA, CAT]),
        # the longest, and then what is left of it
        ("bad hands", [-3, -4, -5]),
        ("bad  HANDS bad", [-3, -4, -5, -6]),
        ("bad cat", [-6, CAT]),
        # the last token of a word is another one than the same letters inside a longer word
        ("badly", None),
        ("easynegatives", None),
        # words are looked for in each span by itself
        ("bad (hands)", None),
        ("none cat", [CAT]),
        (r"style \(v2\).1", [-67, -68]),
    ],
)
def test_a_word_is_known_by_its_tokens(clip: Tokenizer, words: Words, text: str, expected: list[int] | None) -> None:
    if expected is None:
        plain = read(clip, read_words(clip, {}), text)
        expected = [-6, *plain[0][1:]] if text == "bad (hands)" else plain[0]
    assert read(clip, words, text) == [expected]


@pytest.mark.parametrize("name", ["EasyNegative", "easynegative", "EASYNEGATIVE.safetensors", "easynegative.pt"])
def test_a_name_as_comfyui_writes_it(clip: Tokenizer, words: Words, name: str) -> None:
    assert read(clip, words, f"cat, embedding:{name}, dog") == [[CAT, COMMA, -1, -2, COMMA, -69]]
    assert read(clip, words, rf"\embedding\:{name.lower()}") != [[-1, -2]]


def test_nothing_else_is_read_otherwise(clip: Tokenizer, words: Words) -> None:
    for text in ("a photo of a cat", "cat " * 80, "cat BREAK a, b", ""):
        before, after = chunk(clip, parse(text)), chunk(clip, parse(text), words=words)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.weights, before.weights)
        assert (after.rows == OWN).all()


def test_all_places_have_the_weight(clip: Tokenizer, words: Words) -> None:
    chunks = chunk(clip, parse("cat (easynegative:1.3) [embedding:bad]"), words=words)
    expected = np.ones((1, 77), np.float32)
    expected[0, 2:5] = [1.3, 1.3, 1 / 1.1]
    np.testing.assert_array_equal(chunks.weights, expected)


LONG = [-7 - i for i in range(60)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat " * 73 + "easynegative dogs", [[CAT] * 73 + [-1, -2], [3255]]),
        ("cat " * 74 + "easynegative dogs", [[CAT] * 74, [-1, -2, 3255]]),
        ("cat " * 75 + "easynegative", [[CAT] * 75, [-1, -2]]),
        ("cat " * 16 + "long long", [[CAT] * 16, LONG, LONG]),
        ("cat " * 15 + "long cat", [[CAT] * 15 + LONG, [CAT]]),
        # the comma moves what is behind it where the chunk is full, and not where the word alone finds no room
        ("cat " * 70 + ", cat cat cat cat easynegative", [[CAT] * 70 + [COMMA], [CAT] * 4 + [-1, -2]]),
        ("cat " * 70 + ", cat cat cat easynegative", [[CAT] * 70 + [COMMA] + [CAT] * 3, [-1, -2]]),
        # vectors go with their places
        ("cat " * 70 + ", easynegative cat cat cat", [[CAT] * 70 + [COMMA], [-1, -2, CAT, CAT, CAT]]),
        ("cat " * 75 + "none", [[CAT] * 75]),
        ("easynegative BREAK bad", [[-1, -2], [-6]]),
    ],
)
def test_a_word_is_not_split(clip: Tokenizer, words: Words, text: str, expected: list[list[int]]) -> None:
    assert read(clip, words, text) == expected


def test_padding_has_its_own_vectors(clip: Tokenizer, words: Words) -> None:
    chunks = chunk(clip, parse("easynegative"), words=words)
    padded = pad(clip, chunks, 2)
    np.testing.assert_array_equal(padded.rows[:1], chunks.rows)
    assert (padded.rows[1:] == OWN).all()
    assert words.within(padded.rows) == ["EasyNegative"]
    assert words.within(padded.rows[1:]) == []


@pytest.mark.parametrize("syntax", ["a1111", "lenient"])
def test_a_name_that_is_not_there(clip: Tokenizer, words: Words, syntax: Any) -> None:
    with pytest.raises(InputError, match=r"negative_prompt='embedding:easynegatif': .*mean 'easynegative'.*literal"):
        chunk(clip, parse("a embedding:easynegatif", syntax=syntax), "negative_prompt", words)
    with pytest.raises(InputError, match="none is loaded"):
        chunk(clip, parse("embedding:x", syntax=syntax))


def test_names_that_are_the_same_tokens(clip: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"embedding='Bad Hands': .* 'bad hands'"):
        read_words(clip, {"bad hands": 1, "Bad Hands": 1})
