from __future__ import annotations

import numpy as np
import pytest

from jaxl.errors import InputError
from jaxl.text.chunks import Chunks, chunk, pad
from jaxl.text.prompt import parse
from jaxl.text.tokenizer import Tokenizer

COMMA, CAT, DOG = 267, 2368, 1929


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def clip(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.clip(request.param)


def chunks_of(clip: Tokenizer, text: str) -> Chunks:
    chunks = chunk(clip, parse(text))
    assert chunks.ids.dtype == np.int32
    assert chunks.weights.dtype == np.float32
    assert chunks.ids.shape == chunks.weights.shape
    return chunks


def rows(clip: Tokenizer, text: str) -> list[list[int]]:
    """The tokens of each chunk, without beginning, end and padding, which are checked here."""
    found = []
    for ids in chunks_of(clip, text).ids:
        end = ids.tolist().index(clip.eos_id)
        np.testing.assert_array_equal(ids, clip.frame(ids[1:end].tolist()))
        found.append(ids[1:end].tolist())
    return found


@pytest.mark.parametrize(
    "text", ["", "   ", "a photo of a cat", "a, b: c | d\n\te", "cat " * 75, "caf\u00e9 \U0001f431!", "<|endoftext|> a"]
)
def test_plain_text_of_one_chunk_is_what_encode_gives(clip: Tokenizer, text: str) -> None:
    chunks = chunks_of(clip, text)
    np.testing.assert_array_equal(chunks.ids, clip.encode(text).ids)
    assert (chunks.weights == 1).all()


@pytest.mark.parametrize("text", ["a (red:1.2) apple", "a(red:1.2)apple", "(a [red] apple)", "a \n((red)) apple"])
def test_weights_do_not_change_the_ids(clip: Tokenizer, text: str) -> None:
    np.testing.assert_array_equal(chunks_of(clip, text).ids, clip.encode("a red apple").ids)


def test_spans_are_tokenized_apart(clip: Tokenizer) -> None:
    assert rows(clip, "photo(graph)")[0] == clip.tokens("photo graph").ids
    assert rows(clip, "photo(graph:1)")[0] == clip.tokens("photograph").ids


def test_each_token_has_the_weight_of_its_span(clip: Tokenizer) -> None:
    weights = chunks_of(clip, "cat (dog cat:1.5), [dog]").weights
    expected = np.ones((1, 77), np.float32)
    expected[0, 1:6] = [1, 1.5, 1.5, 1, 1 / 1.1]
    np.testing.assert_array_equal(weights, expected)


def test_a_long_text_goes_on_in_the_next_chunk(clip: Tokenizer) -> None:
    chunks = chunks_of(clip, "cat " * 70 + "(" + "dog " * 90 + ":1.5)")
    assert rows(clip, "cat " * 70 + "dog " * 90) == [[CAT] * 70 + [DOG] * 5, [DOG] * 75, [DOG] * 10]
    expected = np.ones((3, 77), np.float32)
    expected[0, 71:76] = expected[1, 1:76] = expected[2, 1:11] = 1.5
    np.testing.assert_array_equal(chunks.weights, expected)


def test_exactly_full_chunks(clip: Tokenizer) -> None:
    assert rows(clip, "cat " * 75) == [[CAT] * 75]
    assert rows(clip, "cat " * 150) == [[CAT] * 75] * 2
    assert rows(clip, "cat " * 75 + "BREAK dog") == [[CAT] * 75, [DOG]]


def test_break_fills_the_chunk_up(clip: Tokenizer) -> None:
    assert rows(clip, "cat BREAK dog") == [[CAT], [DOG]]
    assert rows(clip, "cat BREAK BREAK dog") == [[CAT], [], [DOG]]
    assert rows(clip, "BREAK dog") == [[], [DOG]]
    assert rows(clip, "cat BREAK") == [[CAT]]
    assert rows(clip, "BREAK") == [[]]
    assert rows(clip, "BREAK BREAK") == [[], []]
    assert rows(clip, "cat " * 80 + "BREAK dog") == [[CAT] * 75, [CAT] * 5, [DOG]]


@pytest.mark.parametrize("kept", [54, 55, 56, 73, 74, 75])
def test_a_full_chunk_ends_behind_its_last_comma(clip: Tokenizer, kept: int) -> None:
    """A comma that is the first of the 20 last tokens (the 56th of 75) or a later one counts."""
    first, second = rows(clip, "cat " * kept + ", " + "dog " * 40)
    if 55 <= kept <= 74:
        assert first == [CAT] * kept + [COMMA]
        assert second == [DOG] * 40
    else:
        assert first == ([CAT] * kept + [COMMA] + [DOG] * 40)[:75]
        assert second == ([CAT] * kept + [COMMA] + [DOG] * 40)[75:]


def test_the_comma_takes_the_weights_with_it(clip: Tokenizer) -> None:
    chunks = chunks_of(clip, "cat " * 60 + ", (" + "dog " * 20 + ":1.5)")
    expected = np.ones((2, 77), np.float32)
    expected[1, 1:21] = 1.5
    np.testing.assert_array_equal(chunks.weights, expected)


def test_no_comma_moves_a_chunk_that_is_not_full(clip: Tokenizer) -> None:
    text = "cat " * 60 + ", " + "dog " * 14
    assert rows(clip, text) == [[CAT] * 60 + [COMMA] + [DOG] * 14]
    assert rows(clip, text + ", dog") == [[CAT] * 60 + [COMMA] + [DOG] * 14, [COMMA, DOG]]


def test_padding_is_empty_chunks(clip: Tokenizer) -> None:
    chunks = chunks_of(clip, "a (red:1.2) apple")
    padded = pad(clip, chunks, 3)
    np.testing.assert_array_equal(padded.ids, np.concatenate([chunks.ids, clip.encode(["", ""]).ids]))
    np.testing.assert_array_equal(padded.weights, np.concatenate([chunks.weights, np.ones((2, 77), np.float32)]))
    assert padded.ids.dtype == np.int32
    assert padded.weights.dtype == np.float32
    np.testing.assert_array_equal(pad(clip, chunks, 1).ids, chunks.ids)


def test_half_a_surrogate_pair(clip: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"negative_prompt=.*surrogate pair") as caught:
        chunk(clip, parse("a (ca\ud800t)"), "negative_prompt")
    assert caught.value.argument == "negative_prompt"
