"""Models by name: those that were named, and those of a folder, which come and go."""

from pathlib import Path

import pytest

from jaxl.errors import InputError
from jaxl.residency import catalogue
from jaxl.residency.catalogue import Catalogue
from jaxl.server.settings import ResidencyOptions, read_bytes, read_models


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FRESH", 0.0)


def test_a_folder_is_watched(tmp_path: Path) -> None:
    (tmp_path / "sub" / "whole" / "unet").mkdir(parents=True)
    (tmp_path / "sub" / "whole" / "model_index.json").touch()
    (tmp_path / "sub" / "whole" / "unet" / "part.safetensors").touch()
    (tmp_path / "b.safetensors").touch()
    known = Catalogue([("first", str(tmp_path / "b.safetensors"))], tmp_path)
    assert list(known.sources()) == ["first", "whole"]
    (tmp_path / "c.safetensors").touch()
    assert known.source("c") == str(tmp_path / "c.safetensors")
    (tmp_path / "c.safetensors").unlink()
    with pytest.raises(InputError, match=r"model='c': known: first, whole"):
        known.source("c")


def test_two_models_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model='a': x has this name too; give one another name: NAME=y"):
        Catalogue([("a", "x"), ("a", "y")])
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "sub" / "a.safetensors").touch()
    known = Catalogue([("first", "tiny")], tmp_path)
    with pytest.raises(InputError, match=r"model='a': 2 models are called so: a\.safetensors, a"):
        known.source("a")
    with pytest.raises(InputError, match="model_dir='nowhere': no such folder"):
        Catalogue([], Path("nowhere"))


def test_names_of_models(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.safetensors"
    odd.touch()
    assert read_models(["x=me/other", "me/one", str(odd)]) == (
        ("x", "me/other"), ("me/one", "me/one"), ("a=b", str(odd)),
    )  # fmt: skip
    assert read_models(["me/one"], "mine") == (("mine", "me/one"),)
    with pytest.raises(InputError, match="name='mine'"):
        read_models([], "mine")


def test_sizes_of_memory() -> None:
    assert [read_bytes("a", text) for text in ("24GB", "1.5 GiB", "800m", "7", None)] == [
        24 * 10**9, 3 * 2**29, 8 * 10**8, 7, None,
    ]  # fmt: skip
    with pytest.raises(InputError, match="device_memory='much': give bytes with a unit, such as 24GB or 24GiB"):
        read_bytes("device_memory", "much")
    with pytest.raises(InputError, match=r"pin=.*: there is one model; give more, or `model_dir`"):
        ResidencyOptions((("a", "tiny"),), pin=("a",))
