from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxl.errors import CheckpointError, InputError, OutputError
from jaxl.text import vocabulary as module
from jaxl.text.vocabulary import clip_vocabulary, read_vocabulary, write_vocabulary

TEXT = Path(module.__file__).parent
TINY = TEXT.parent / "models" / "tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a checkpoint's tokenizer folder, to damage."""
    shutil.copytree(TINY / "tokenizer_2", tmp_path / "tokenizer_2")
    return tmp_path / "tokenizer_2"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer_json(folder: Path, **changes: Any) -> None:
    """Turn the folder into one with a tokenizer.json, with fields of its model changed."""
    vocabulary = read_vocabulary(folder)
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": dict(vocabulary.ids), "merges": vocabulary.merges}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {**model, **changes}}), encoding="utf-8")
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()


def test_shipped_merges_are_clips() -> None:
    packed = (TEXT / "clip_merges.txt.gz").read_bytes()
    text = gzip.decompress(packed)
    assert packed[4:8] == bytes(4)  # no time stamp, so that the file can be made again byte for byte
    assert text.count(b"\n") == 48_894
    assert hashlib.sha256(text).hexdigest() == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("!", 0),
        ("~", 93),
        ("\u00a1", 94),
        ("\u0100", 188),
        ("!</w>", 256),
        ("in", 512),
        ("cat</w>", 2368),
        ("hello</w>", 3306),
        ("world</w>", 1002),
        ("jekyll</w>", 49405),
        ("<|startoftext|>", 49406),
        ("<|endoftext|>", 49407),
    ],
)
def test_ids_of_clip(token: str, expected: int) -> None:
    assert clip_vocabulary().ids[token] == expected


def test_clip_has_one_id_per_token() -> None:
    assert sorted(clip_vocabulary().ids.values()) == list(range(49_408))


def test_clip_with_an_unknown_pad() -> None:
    with pytest.raises(InputError, match="pad='<pad>'"):
        clip_vocabulary("<pad>")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "merges.txt"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"tokenizer_2: {name} is missing"):
        read_vocabulary(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: tokenizer_config\.json is missing"):
        read_vocabulary(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"{"])
def test_damaged_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_vocabulary(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("padding_side", "left"),
        ("truncation_side", "left"),
        ("split_special_tokens", True),
        ("tokenizer_class", "T5Tokenizer"),
        ("model_max_length", 2),
        ("model_max_length", "77"),
        ("pad_token", None),
        ("pad_token", 0),
        ("extra_special_tokens", {"image_token": "<image>"}),
    ],
)
def test_field_that_cannot_be_honoured_is_named(folder: Path, field: str, value: object) -> None:
    edit(folder / "tokenizer_config.json", lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError, match=field):
        read_vocabulary(folder)


@pytest.mark.parametrize(("section", "field"), [("padding", "padding_side"), ("truncation", "truncation_side")])
def test_direction_in_tokenizer_json_is_named(folder: Path, section: str, field: str) -> None:
    write_tokenizer_json(folder)
    edit(folder / "tokenizer.json", lambda whole: whole.update({section: {"direction": "Left"}}))
    with pytest.raises(CheckpointError, match=f"{field}='left'"):
        read_vocabulary(folder)


@pytest.mark.parametrize(
    "changes", [{"type": "Unigram"}, {"end_of_word_suffix": None}, {"merges": ["a"]}, {"vocab": None}]
)
def test_tokenizer_json_of_another_kind(folder: Path, changes: dict[str, Any]) -> None:
    write_tokenizer_json(folder, **changes)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_vocabulary(folder)


@pytest.mark.parametrize(
    ("content", "at", "message"),
    [
        ("<cat-toy>", "2050", "'<cat-toy>' has id 2050, the vocabulary says 2048"),
        ("cat</w>", "7", "'cat</w>' has id 7, the vocabulary says"),
    ],
)
def test_added_token_whose_id_does_not_fit(folder: Path, content: str, at: str, message: str) -> None:
    edit(folder / "tokenizer_config.json", lambda c: c["added_tokens_decoder"].update({at: {"content": content}}))
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(folder)


def test_special_token_outside_the_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda config: config.update(pad_token="[PAD]"))
    with pytest.raises(CheckpointError, match=r"lacks the special token '\[PAD\]'"):
        read_vocabulary(folder)


@pytest.mark.parametrize("decoder", [{"a": {"content": "x"}}, {"0": "!"}, ["!"]])
def test_damaged_added_tokens(folder: Path, decoder: object) -> None:
    edit(folder / "tokenizer_config.json", lambda config: config.update(added_tokens_decoder=decoder))
    with pytest.raises(CheckpointError, match="added tokens are damaged"):
        read_vocabulary(folder)


@pytest.mark.parametrize("stated", [None, 1000000000000000019884624838656])
def test_length_is_clips_where_none_is_stated(folder: Path, stated: int | None) -> None:
    edit(folder / "tokenizer_config.json", lambda config: config.pop("model_max_length"))
    if stated is not None:
        edit(folder / "tokenizer_config.json", lambda config: config.update(model_max_length=stated))
    assert read_vocabulary(folder).max_length == 77


def test_merges_are_read_in_both_forms(folder: Path) -> None:
    merges = read_vocabulary(folder).merges
    write_tokenizer_json(folder, merges=[" ".join(merge) for merge in merges])
    assert read_vocabulary(folder).merges == merges


def test_written_vocabulary_reads_back(tmp_path: Path) -> None:
    first = read_vocabulary(TINY / "tokenizer_2")
    write_vocabulary(first, tmp_path / "new" / "tokenizer_2")
    second = read_vocabulary(tmp_path / "new" / "tokenizer_2")
    assert second == first
    assert sorted(path.name for path in (tmp_path / "new" / "tokenizer_2").iterdir()) == [
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_vocabulary(read_vocabulary(TINY / "tokenizer"), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_tokenizer_json_is_not_left_to_hide_what_is_written(folder: Path) -> None:
    write_tokenizer_json(folder)
    with pytest.raises(OutputError, match=r"tokenizer\.json"):
        write_vocabulary(clip_vocabulary(), folder)


def test_writing_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="not saved"):
        write_vocabulary(clip_vocabulary(), tmp_path / "file" / "tokenizer")
    assert (tmp_path / "file").read_text() == "kept"
