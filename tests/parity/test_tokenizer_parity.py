"""Token ids against transformers' CLIPTokenizer, the tokenizer that diffusers' SDXL pipeline uses."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPTokenizer

from jaxl.text import tokenizer as module
from jaxl.text.tokenizer import Tokenizer

TINY = Path(module.__file__).parents[1] / "models" / "tiny"

AWKWARD = [
    "",
    " ",
    "\n\t \r\n\x0b\x0c",
    "a photo of a cat",
    "  A  Photo\tOF\n\na   CAT  ",
    "!",
    "!!",
    "wow! such! art!!!",
    "a! b !c ! d?!",
    "<|endoftext|>",
    "a<|endoftext|>b <|startoftext|> c",
    "<|ENDOFTEXT|> <|StartOfText|> <|endoftext|",
    "<|endoftext|>" * 90,
    "< | endoftext | > <|endoftext |>",
    "</w> cat</w> <w>",
    "caf\u00e9 cafe\u0301 CAF\u00c9 CAFE\u0301",
    "\u1e9b\u0323 \u212b A\u030a \ufb01ne \u0130stanbul \u1e9e stra\u00dfe \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "a\u0300\u0301\u0302\u0303\u0304 \u0301 \u0301\u0301x",
    "Z\u0351\u036b\u0343a\u0329\u0321l\u0348\u034cg\u0322\u0361o\u035c",
    "\u4e00\u53ea\u732b\u5750\u5728\u5c4b\u9876\u4e0a\uff0c\u6c34\u5f69\u753b\u3002",
    "\u6771\u4eac\u306e\u591c\u666f \u30ab\u30e9\u30d5\u30eb\u306a \uff76\uff9e\u30ac",
    "\uace0\uc591\uc774 \u1100\u1161\u11a8",
    "\u0642\u0637\u0629 \u0639\u0644\u0649 \u0627\u0644\u0633\u0637\u062d \u05d7\u05ea\u05d5\u05dc",
    "\u202ertl\u202c \u200f!",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e41\u0e21\u0e27 \u10d9\u10d0\u10e2\u10d0",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \u2764\ufe0f",
    "\U0001f44b\U0001f3fd\U0001f1ef\U0001f1f5 1\ufe0f\u20e3 \U0001f431cat\U0001f431",
    "I'm you're we've they'll he'd it's don't I'LL 'S 'sit o'clock 'tis ''' 's't're",
    "\u2019s it\u2019s don\u2019t \u201cquoted\u201d \u2014 dash \u2026",
    "1 12 123 1,234.56 3.14e-10 1024x1024 \u0663\u0664 \u00bd \u2167 \u4e94 \u00b2",
    "a_b-c/d\\e.f@g:h;i,j(k)[l]{m} ((masterpiece:1.2)), <lora:x:0.8>",
    "#hashtag & &amp; &lt;b&gt; 100% $5 \u20ac5 a+b=c ~^`|",
    "nul\x00byte \x01\x02\x1f\x7f\x80\x85\x9f \u2028\u2029 \ufeffbom \u200bzero\u00a0nbsp\u3000wide",
    "\ufffd \ufffe \uffff \U0010ffff \ue000 \U000e0001",
    "supercalifragilisticexpialidocious" * 12,
    "antidisestablishmentarianism " * 60,
    " ".join(f"word{i}" for i in range(400)),
    "x" * 5000,
    "!" * 100,
    "\U0001f600" * 40,
    "\u4e00" * 80,
    "a\n" * 80,
    "\u1680\u180ea\u2000b\u205fc\u2060d\x1ce\x1df\x1eg\x1fh",
]

# What random texts are made of: single characters from a range, or whole pieces.
RANGES = [
    (0x00, 0xFF),
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0x100, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x6FF),
    (0x900, 0x1FFF),
    (0x2000, 0x2FFF),
    (0x3000, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFFFF),
    (0x1F000, 0x1FAFF),
    (0xE000, 0x10FFFF),
]
PIECES = [*" \n\t!'", "<|endoftext|>", "<|STARTOFTEXT|>", "'s", "'LL", "cat", "Dog", "\u200d", "\ufe0f", "</w>", "2024"]


def random_texts(count: int) -> list[str]:
    rng = random.Random(20240607)
    texts = []
    for _ in range(count):
        ranges = rng.sample(RANGES, 3)
        texts.append(
            "".join(
                rng.choice(PIECES) if rng.random() < 0.3 else chr(rng.randint(*rng.choice(ranges)))
                for _ in range(rng.randint(1, 120))
            )
        )
    return texts


TEXTS = AWKWARD + random_texts(600)


def assert_same(ours: Tokenizer, folder: Path, texts: list[str]) -> None:
    theirs = CLIPTokenizer.from_pretrained(str(folder))
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert (ours.max_length, ours.vocab_size) == (theirs.model_max_length, len(theirs))
    expected = theirs(texts, padding="max_length", max_length=theirs.model_max_length, truncation=True).input_ids
    encoded = ours.encode(texts)
    different = [text for text, a, b in zip(texts, encoded.ids.tolist(), expected, strict=True) if a != b]
    assert not different, different[:3]
    room = ours.max_length - 2
    whole = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
    for text, lost, ids, offsets in zip(texts, encoded.lost, whole.input_ids, whole.offset_mapping, strict=True):
        assert ours.tokens(text).ids == ids, repr(text)
        assert lost == (text[offsets[room][0] :] if len(ids) > room else ""), repr(text)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_checkpoint_tokenizer(name: str) -> None:
    assert_same(Tokenizer.from_dir(TINY / name), TINY / name, TEXTS)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_shipped_vocabulary_saved_for_transformers(pad: Any, tmp_path: Path) -> None:
    shipped = Tokenizer.clip(pad)
    shipped.save(tmp_path)
    assert_same(shipped, tmp_path, TEXTS)
    assert_same(Tokenizer.from_dir(tmp_path), tmp_path, AWKWARD)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_saved_tokenizer_gives_transformers_the_same_ids(name: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_dir(TINY / name)
    ours.save(tmp_path)
    assert_same(ours, tmp_path, TEXTS)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_folder_saved_by_transformers(name: str, tmp_path: Path) -> None:
    CLIPTokenizer.from_pretrained(str(TINY / name)).save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert_same(Tokenizer.from_dir(tmp_path), tmp_path, AWKWARD)


def typed(content: str) -> dict[str, Any]:
    fields = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": content, **fields}


def before_added_tokens_decoder(config: dict[str, Any], folder: Path) -> None:
    del config["added_tokens_decoder"]
    config |= {key: typed(config[key]) for key in ("bos_token", "eos_token", "unk_token")}


def only_a_config(config: dict[str, Any], folder: Path) -> None:
    before_added_tokens_decoder(config, folder)
    (folder / "special_tokens_map.json").unlink()


def map_overrules_config(config: dict[str, Any], folder: Path) -> None:
    before_added_tokens_decoder(config, folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "cat</w>"}))


def old_added_tokens(config: dict[str, Any], folder: Path) -> None:
    before_added_tokens_decoder(config, folder)
    config["additional_special_tokens"] = ["<cat-toy>"]
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 2048, "<Style 2>": 2049}))


def learned_tokens(config: dict[str, Any], folder: Path) -> None:
    strips = {"lstrip": True, "rstrip": True, "single_word": False, "normalized": False, "special": True}
    config["added_tokens_decoder"]["2048"] = {"content": "<cat-toy>", **strips}
    config["added_tokens_decoder"]["2049"] = {"content": "Style", "single_word": True, "special": False}
    config["extra_special_tokens"] = ["cat</w>", "<cat-toy>"]
    config["mask_token"] = "dog</w>"
    config["style_token"] = "of</w>"


def without_effect(config: dict[str, Any], folder: Path) -> None:
    config |= {"do_lower_case": False, "add_prefix_space": True, "add_bos_token": False, "errors": "strict"}


def nothing_named(config: dict[str, Any], folder: Path) -> None:
    before_added_tokens_decoder(config, folder)
    (folder / "special_tokens_map.json").unlink()
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        del config[key]


def shorter(config: dict[str, Any], folder: Path) -> None:
    config["model_max_length"] = 20


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    "change",
    [
        before_added_tokens_decoder,
        only_a_config,
        map_overrules_config,
        old_added_tokens,
        learned_tokens,
        without_effect,
        nothing_named,
        shorter,
    ],
)
def test_folders_of_other_releases(change: Callable[[dict[str, Any], Path], None], name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(TINY / name, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    change(config, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    words = [
        "<cat-toy>",
        "<CAT-TOY>",
        "a <cat-toy> b",
        "<style 2> <Style 2>",
        "style Style Styles",
        "cat</w> CAT</W> dog</w>of</w>",
    ]
    ours = Tokenizer.from_dir(folder)
    assert_same(ours, folder, AWKWARD + words)

    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(str(tmp_path / "theirs"))
    assert_same(Tokenizer.from_dir(tmp_path / "theirs"), tmp_path / "theirs", AWKWARD + words)
    ours.save(tmp_path / "ours")
    saved = Tokenizer.from_dir(tmp_path / "ours")
    np.testing.assert_array_equal(saved.encode(AWKWARD + words).ids, ours.encode(AWKWARD + words).ids)
    assert_same(saved, tmp_path / "ours", AWKWARD + words)
