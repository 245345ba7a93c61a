"""PNG files: what they say of themselves, and that they are written whole or not at all."""

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import jaxl
from jaxl.errors import InputError, OutputError
from jaxl.png import (
    MAX_SETTINGS_CHARACTERS,
    check_writable,
    png_bytes,
    read_settings,
    write_new_png,
    write_png,
)

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8))
SETTINGS = {
    "version": "0.1.0",
    "model": "tiny",
    "prompt": "a red apple",
    "seed": 1,
    "steps": 25,
    "guidance_scale": 5.0,
    "width": 256,
    "height": 256,
    "scheduler": "euler",
}


@pytest.mark.parametrize(
    ("prompt", "chunk"),
    [
        ("", b"tEXt"),
        ('café, naïve: 50% \\ "quoted"\nNegative prompt: no', b"tEXt"),
        ("un château 城 🏰 é", b"iTXt"),
        ("\x00\x01\x7f\r\n\t", b"tEXt"),
        ("half \ud83d a pair", b"tEXt"),
    ],
)
def test_any_prompt_survives(tmp_path: Path, prompt: str, chunk: bytes) -> None:
    settings = {**SETTINGS, "prompt": prompt, "seed": 2**64 - 1, "guidance_scale": 1 / 3}
    write_png(tmp_path / "a.png", IMAGE, settings)
    assert read_settings(tmp_path / "a.png") == settings
    assert chunk + b"parameters\0" in (tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        expected = prompt.replace("\0", "").replace("\ud83d", "?")
        assert image.info["parameters"].startswith(f"{expected}\nSteps: 25, ")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(IMAGE))


def test_an_xmp_packet() -> None:
    for settings in (SETTINGS, None):
        with Image.open(io.BytesIO(png_bytes(IMAGE, settings, "<x>é</x>"))) as image:
            assert image.info["xmp"] == "<x>é</x>".encode()
            assert ("jaxl" in image.info) == (settings is not None)
    assert b"XML:com.adobe.xmp" not in png_bytes(IMAGE, SETTINGS)


def test_a_file_is_replaced_and_a_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    write_png(path, IMAGE, SETTINGS)
    write_png(path, IMAGE, {**SETTINGS, "seed": 2})
    assert read_settings(path)["seed"] == 2
    assert os.listdir(path.parent) == ["a.png"]


def test_what_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "files" / "a.png")
    write_png(tmp_path / "link.png", IMAGE, SETTINGS)
    assert (tmp_path / "link.png").is_symlink()
    assert read_settings(tmp_path / "files" / "a.png") == SETTINGS


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_only_a_regular_file_is_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    make(path)
    before = path.lstat().st_mode
    with pytest.raises(InputError, match=r"^output='.*a\.png': not a regular file"):
        check_writable("output", path, folder=False)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written \(not a regular file"):
        write_png(path, IMAGE, SETTINGS)
    assert path.lstat().st_mode == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_new_files_never_replace(tmp_path: Path) -> None:
    """Not even when many write at once."""
    (tmp_path / "0.png").write_text("mine")
    names: list[Path] = []

    def write(seed: int) -> None:
        paths = (tmp_path / f"{i}.png" for i in range(9))
        names.append(write_new_png(paths, IMAGE.copy(), {**SETTINGS, "seed": seed}))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "0.png").read_text() == "mine"
    assert {read_settings(name)["seed"] for name in names} == set(range(8))
    assert sorted(os.listdir(tmp_path)) == [f"{i}.png" for i in range(9)]


def test_new_files_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "0.png").write_text("mine")
    assert write_new_png((tmp_path / f"{i}.png" for i in range(9)), IMAGE, SETTINGS) == tmp_path / "1.png"
    assert (tmp_path / "0.png").read_text() == "mine"
    assert read_settings(tmp_path / "1.png") == SETTINGS


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, r"a\.png: .*No space left on device"),
    ],
)
def test_a_failure_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(raised, match=message):
        write_png(path, IMAGE, SETTINGS)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_text() == "old"


def test_a_write_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource; from pathlib import Path; from PIL import Image; from jaxl.png import write_png\n"
        "from jaxl.errors import OutputError; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"settings = {SETTINGS!r}\n"
        "try: write_png(Path('a.png'), Image.effect_noise((64, 64), 50), settings)\n"
        "except OutputError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(jaxl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "a.png: cannot be written (File too large)\n"
    assert os.listdir(tmp_path) == []


def test_a_place_is_checked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable("output", tmp_path / "new" / "folder", folder=True)
    check_writable("output", tmp_path / "new" / "a.png", folder=False)
    for path, folder in (("file", True), ("file/folder", True), ("file/a.png", False)):
        with pytest.raises(InputError, match="Not a directory; choose another place"):
            check_writable("output", tmp_path / path, folder=folder)
    with pytest.raises(InputError, match="File name too long"):
        check_writable("output", tmp_path / f"{'a' * 300}.png", folder=False)
    assert os.listdir(tmp_path) == ["file"]


def _png(text: str, name: str = "jaxl") -> bytes:
    """A PNG with a chunk of this text and name."""
    info = PngInfo()
    info.add_text(name, text)
    stream = io.BytesIO()
    IMAGE.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + b"\0" * 100, "not a PNG"),
        (png_bytes(IMAGE, SETTINGS)[:60], "not a PNG|damaged"),
        (_png("{}", "else"), "no settings of jaxl"),
        (_png("{"), "damaged settings"),
        (_png("[1]"), "not a JSON object"),
        (_png('{"seed": 1, "seed": 2}'), "a name is there twice"),
        (_png('{"seed": NaN}'), "NaN is no JSON number"),
        (_png("[" * 100_000), "damaged settings"),
        (_png(f'{{"prompt": "{"a" * MAX_SETTINGS_CHARACTERS}"}}'), "at most 1000000"),
    ],
)
def test_settings_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"path={str(path)!r}: ")
    assert "\n" not in str(caught.value)


def test_no_file_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_settings(tmp_path / "a.png")
    with pytest.raises(InputError, match="directory"):
        read_settings(tmp_path)
