"""Wildcards and prompt styles from files: what they make of prompts, and which files are refused."""

from pathlib import Path

import pytest

import jaxl
from jaxl.text.prompt_styles import PromptStyle, chosen, read_styles
from jaxl.text.wildcards import Wildcards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "big_cats.txt").write_text("# comment\n\na lion\n  a tiger, striped\n", "utf-8")
    (tmp_path / "scene.txt").write_text("\ufeff__animals/big_cats__ in a forêt\n", "utf-8")
    (tmp_path / "round.txt").write_text("__round__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path.parent / "outside.txt").write_text("a secret")
    return tmp_path


def test_a_line_for_each(folder: Path) -> None:
    wild = Wildcards(folder)
    made = [wild.expand("__animals/big_cats__ and __scene__", seed) for seed in range(40)]
    cats = ("a lion", "a tiger, striped")
    assert set(made) == {f"{one} and {other} in a forêt" for one in cats for other in cats}
    assert made == [Wildcards(folder).expand("__animals/big_cats__ and __scene__", seed) for seed in range(40)]
    assert len({wild.expand("__scene__", 1, argument) for argument in map(str, range(20))}) == 2
    assert wild.expand("_a_ a__b", 0) == "_a_ a__b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__scenes__", "prompt='__scenes__': did you mean 'scene'"),
        ("__../outside__", "prompt='__../outside__'"),
        ("__round__", "prompt='__round__': its wildcards name each other in a circle"),
        ("__empty__", "wildcards=.*empty.txt': it has no line"),
        ("__bytes__", "wildcards=.*bytes.txt': not UTF-8"),
    ],
)
def test_wildcards_that_are_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(jaxl.InputError, match=message):
        Wildcards(folder).expand(text, 0)
    with pytest.raises(jaxl.InputError, match=r"wildcards=.*no such folder"):
        Wildcards(folder / "scene.txt")


def test_styles_of_a1111(tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    file.write_text(
        '\ufeffname,prompt,negative_prompt\nFilm,"photo of {prompt}, ""35 mm""",drawing\nNo blur,,"blurry, soft"\n,,\n',
        "utf-8",
    )
    known = read_styles(file)
    assert known["Film"] == PromptStyle("Film", 'photo of {prompt}, "35 mm"', "drawing")
    film, sharp = chosen(known, ["Film", "No blur"])
    assert sharp.apply(*film.apply("a cat", "")) == ('photo of a cat, "35 mm"', "drawing, blurry, soft")
    file.write_text("name,text\nold,in oil\n")  # as early versions wrote them
    assert read_styles(file)["old"].apply("a cat", "b") == ("a cat, in oil", "b")
    with pytest.raises(jaxl.InputError, match="prompt_style='film': did you mean 'Film'"):
        chosen(known, ["film"])


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"name,prompt\n\xff,\xff"])
def test_files_that_have_no_styles(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "styles.csv"
    file.write_bytes(content)
    with pytest.raises(jaxl.InputError, match=r"styles_file=.*(its first line must be|no CSV in UTF-8)"):
        read_styles(file)
    with pytest.raises(jaxl.InputError, match=r"styles_file=.*No such file"):
        read_styles(tmp_path / "nothing.csv")
