from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxl.errors import CheckpointError, InputError
from jaxl.text import tokenizer as module
from jaxl.text.tokenizer import Tokenizer

TINY = Path(module.__file__).parents[1] / "models" / "tiny"
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.clip()


def test_a_known_prompt(clip: Tokenizer) -> None:
    encoded = clip.encode("a photo of a cat")
    assert encoded.ids.dtype == np.int32
    assert encoded.ids.tolist() == [CAT + [49407] * 70]
    assert encoded.lost == ("",)


def test_second_tokenizer_pads_with_zero() -> None:
    assert Tokenizer.clip("!").encode("a photo of a cat").ids.tolist() == [CAT + [0] * 70]


def test_exclamation_mark_is_special_only_where_it_pads(clip: Tokenizer) -> None:
    assert clip.tokens("cat!").ids == [2368, 256]
    assert Tokenizer.clip("!").tokens("cat!").ids == [2368, 0]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_properties_of_clip(pad: Any) -> None:
    tokenizer = Tokenizer.clip(pad)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.max_length, tokenizer.vocab_size) == (49406, 49407, 77, 49408)
    assert tokenizer.pad_id == (0 if pad == "!" else 49407)


def test_properties_of_a_checkpoint() -> None:
    tokenizer = Tokenizer.from_dir(TINY / "tokenizer_2")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2046, 2047, 0)
    assert (tokenizer.max_length, tokenizer.vocab_size) == (77, 2048)


def test_a_list_gives_one_row_for_each(clip: Tokenizer) -> None:
    encoded = clip.encode(["a photo of a cat", ""])
    assert encoded.ids.tolist() == [CAT + [49407] * 70, [49406] + [49407] * 76]
    assert encoded.lost == ("", "")
    assert clip.encode([]).ids.shape == (0, 77)


def test_lost_words_are_as_they_were_written(clip: Tokenizer) -> None:
    kept, lost = "a cat, " * 25, "a Baby\n Dolphin!"
    encoded = clip.encode([kept + lost, kept])
    assert encoded.lost == (lost, "")
    np.testing.assert_array_equal(encoded.ids[0], encoded.ids[1])


@pytest.mark.parametrize(
    "unit", ["cafe\u0301 ", "CAF\u00c9\t", "\u732b ", "\U0001f431 ", "\U0001f468\u200d\U0001f469 "]
)
def test_lost_part_of_other_scripts(clip: Tokenizer, unit: str) -> None:
    per_unit = len(clip.tokens(unit).ids)
    text = unit * 80
    # The character in which the cut falls is lost, and with it all that follows.
    first = 75 // per_unit * len(unit)
    lost = clip.encode(text).lost[0]
    assert text.endswith(lost)
    assert len(text) - first - len(unit) < len(lost) <= len(text) - first


def test_a_prompt_that_just_fits_loses_nothing(clip: Tokenizer) -> None:
    encoded = clip.encode(["cat " * 75, "cat " * 76])
    assert encoded.ids[0].tolist() == [49406] + [2368] * 75 + [49407]
    np.testing.assert_array_equal(encoded.ids[0], encoded.ids[1])
    assert encoded.lost == ("", "cat ")


def test_tokens_are_not_cut_and_know_where_they_start(clip: Tokenizer) -> None:
    tokens = clip.tokens("  cat CAT " * 100)
    assert tokens.ids == [2368] * 200
    assert tokens.starts[:4] == [2, 6, 12, 16]


def test_frame_of_tokens_is_what_encode_gives(clip: Tokenizer) -> None:
    row = clip.frame(clip.tokens("a photo of a cat").ids)
    assert row.dtype == np.int32
    np.testing.assert_array_equal(row, clip.encode("a photo of a cat").ids[0])


@pytest.mark.parametrize("prompt", [None, 3, b"cat", {"a": "b"}])
def test_a_prompt_that_is_no_text(clip: Tokenizer, prompt: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"negative_prompt={prompt!r}: must be a string")) as caught:
        clip.encode(prompt, "negative_prompt")
    assert caught.value.argument == "negative_prompt"


def test_a_list_with_something_that_is_no_text(clip: Tokenizer) -> None:
    with pytest.raises(InputError, match="prompt=7: must be a string, not a int"):
        clip.encode(["cat", 7])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["ca\ud800t", "ca\udc80"])
def test_half_a_surrogate_pair(clip: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match=r"prompt='ca\\ud.*surrogate pair at character 2") as caught:
        clip.encode(text)
    assert "\n" not in str(caught.value)


def test_merges_of_another_vocabulary(tmp_path: Path) -> None:
    shutil.copytree(TINY / "tokenizer", tmp_path / "tokenizer")
    with (tmp_path / "tokenizer" / "merges.txt").open("a", encoding="utf-8") as merges:
        merges.write("zebra crossing\n")
    with pytest.raises(CheckpointError, match="tokenizer: the tokenizer's merges do not fit"):
        Tokenizer.from_dir(tmp_path / "tokenizer")


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    first = Tokenizer.clip("!")
    first.save(tmp_path)
    second = Tokenizer.from_dir(tmp_path)
    assert second.vocabulary == first.vocabulary
    prompts = ["a Cat!", "<|endoftext|> x", "\U0001f431" * 50]
    np.testing.assert_array_equal(second.encode(prompts).ids, first.encode(prompts).ids)
