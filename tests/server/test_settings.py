"""What clients call a model."""

from pathlib import Path

import pytest

from jaxl.errors import InputError
from jaxl.server.settings import Settings, public_name, read_name


def test_public_name_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.safetensors").touch()
    Path("mine.safetensors").symlink_to("secret.safetensors")
    Path("folder").mkdir()
    assert public_name("mine.safetensors") == "mine", "not what the link points to"
    assert public_name(str(tmp_path / "mine.safetensors")) == "mine"
    assert public_name("folder/") == public_name("./folder/../folder") == "folder"
    assert public_name(".") == tmp_path.name
    assert public_name("/not/here/model.safetensors") == "model"
    assert public_name("/") == "model"
    assert public_name("org/model") == "org/model"


@pytest.mark.parametrize("text", ["", " ", "a\nb", "\x00", "x" * 101])
def test_names_that_fit_no_line(text: str) -> None:
    with pytest.raises(InputError, match="alias"):
        read_name(text, "alias")


def test_names_are_said_once() -> None:
    assert Settings(model="tiny", aliases=("dall-e-3", "tiny", "dall-e-3")).names == ("tiny", "dall-e-3")
