"""Adapters by name, those that were added and those of folders, whose files come and go."""

import os
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import SHAPES, write

from jaxl.errors import CheckpointError, InputError
from jaxl.weights.adapters.adapter import read_adapter
from jaxl.weights.adapters.library import MARKS, Library, check_folder, check_tag_name

KEY = "lora_unet_mid_block_attentions_0_proj_in"
METADATA = {"modelspec.trigger_phrase": "pencil drawing", "ss_base_model_version": "sdxl_base_v1-0"}


def lora(value: float = 1.0, **more: Any) -> dict[str, Any]:
    outputs, inputs = (SHAPES["unet"]["mid_block"]["attentions"]["0"]["proj_in"]["weight"].shape[i] for i in (1, 0))
    down, up = np.full((2, inputs), value, np.float32), np.ones((outputs, 2), np.float32)
    return {f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": up, **more}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write(tmp_path / "pencil.safetensors", lora(), METADATA)
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner" / "ink.safetensors", lora(2.0))
    return Library(lambda name, file, **how: read_adapter(name, file, SHAPES, **how), [tmp_path])


def test_files_of_a_folder_and_below_it(library: Library) -> None:
    assert sorted(library) == ["ink", "pencil"]
    assert (library["ink"].name, len(library), "ink" in library) == ("ink", 2, True)
    assert library.held() == ["ink"]
    assert library["ink"] is library["ink"]


@pytest.mark.parametrize("name", ["ink.safetensors", "inner/ink", "../ink", "", "/etc/passwd", "Ink"])
def test_a_name_is_no_path(library: Library, name: str) -> None:
    assert name not in library
    with pytest.raises(KeyError):
        library[name]


def test_a_replaced_file_is_read_again(library: Library, tmp_path: Path) -> None:
    before = library["pencil"]
    write(tmp_path / "new", lora(3.0))
    os.replace(tmp_path / "new", tmp_path / "pencil.safetensors")
    assert library["pencil"].digest != before.digest
    (tmp_path / "pencil.safetensors").unlink()
    assert "pencil" not in library


def test_what_a_file_has_too_much(library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"lora_unet_nowhere.lora_down.weight": np.ones((1, 1))}
    write(tmp_path / "more.safetensors", lora() | more)
    library.reading = {"lenient": "ask the operator"}
    with pytest.raises(CheckpointError, match=r"are for no layer of this model: .*; ask the operator$"):
        library["more"]
    library.reading, library.shown = {"strict": False}, attrgetter("name")
    assert library["more"] is library["more"]
    told = "more.safetensors: 1 of its tensors left out, such as lora_unet_nowhere.lora_down.weight"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_what_files_say_of_themselves(library: Library, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    found = library.descriptions()
    assert sorted(found) == ["broken", "ink", "pencil"]
    assert (found["pencil"].trigger_words, found["pencil"].base_model) == (("pencil drawing",), "sdxl_base_v1-0")
    assert (found["broken"].metadata, found["ink"].metadata) == ({}, {})
    write(tmp_path / "new", lora(), {"modelspec.trigger_phrase": "chalk"})
    os.replace(tmp_path / "new", tmp_path / "pencil.safetensors")
    assert library.descriptions()["pencil"].trigger_words == ("chalk",)


@pytest.mark.parametrize("shown", [str, attrgetter("name")], ids=["path", "name"])
def test_errors_call_files_as_they_are_to_be_shown(library: Library, tmp_path: Path, shown: Any) -> None:
    library.shown = shown
    broken = tmp_path / "inner" / "broken.safetensors"
    broken.write_bytes(b"not a file of tensors")
    nan = write(tmp_path / "nan.safetensors", lora(np.nan))
    for file in (broken, nan):
        with pytest.raises(CheckpointError, match=f"^{re.escape(shown(file))}: ") as error:
            library[file.stem]
        assert (str(tmp_path) in str(error.value)) == (shown is str)
    twice = write(tmp_path / "inner" / "nan.safetensors", lora())
    with pytest.raises(CheckpointError, match=f"^2 files are called nan: .*{re.escape(shown(twice))}.*; rename"):
        library["nan"]


def test_what_was_added_comes_first(library: Library) -> None:
    added = library["ink"]
    other = Library(lambda name, file: read_adapter(name, file, SHAPES), library.folders)
    other.add(added)
    assert other["ink"] is added
    other.add(added)
    with pytest.raises(InputError, match="has this name; remove it first"):
        other.add(read_adapter("ink", library.folders[0] / "pencil.safetensors", SHAPES))
    other.remove("ink")
    other.remove("ink")
    assert other["ink"] is not added


def test_names_that_no_prompt_can_have(library: Library, tmp_path: Path) -> None:
    for mark in MARKS:
        write(tmp_path / f"a{mark}b.safetensors", lora())
        with pytest.raises(InputError, match="give a name without colons"):
            check_tag_name("name", f"a{mark}b")
    assert sorted(library) == ["ink", "pencil"]
    with pytest.raises(InputError, match=r"lora_dir='.*': there is no such folder"):
        check_folder("lora_dir", tmp_path / "none")
