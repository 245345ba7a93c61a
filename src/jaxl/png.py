"""Pictures as PNG files that say how they were made, written whole or not at all.

Two text chunks go into a file. `parameters` is the text that AUTOMATIC1111's web UI writes and that most galleries read
(https://github.com/AUTOMATIC1111/stable-diffusion-webui, `modules/infotext_utils.py`). `jaxl` is JSON with every
setting under its name in `Pipeline.generate`, which `read_settings` reads.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from jaxl.call.infotext import a1111_text
from jaxl.call.infotext import read_a1111_text as read_a1111_text
from jaxl.errors import InputError, OutputError

__all__ = ["png_bytes", "read_settings", "write_new_png", "write_png"]

MAX_SETTINGS_CHARACTERS = 1_000_000
MAX_FILE_BYTES = 256 * 2**20
XMP_CHUNK = "XML:com.adobe.xmp"  # which may say that a machine made the picture
KEPT = ("parameters", "jaxl", XMP_CHUNK)


def write_png(
    path: Path, image: Image.Image, settings: Mapping[str, Any] | None, texts: Mapping[str, str] | None = None
) -> None:
    """Write an image with its settings, if any, replacing a regular file at `path`, or the file a link there points to.

    `texts` are as in `png_bytes`.

    The folder is made if need be. Raises OutputError, with the old file untouched and nothing new left behind.
    """
    target = Path(os.path.realpath(path))
    with _failing(path), _temporary(target.parent, png_bytes(image, settings, texts=texts)) as temporary:
        _check_replaceable(target)
        os.replace(temporary, target)


def write_new_png(paths: Iterable[Path], image: Image.Image, settings: Mapping[str, Any]) -> Path:
    """Write to the first of `paths`, endless and in one folder, where there is nothing yet, and return it.

    The folder is made if need be. Raises OutputError, with nothing left behind.
    """
    paths = iter(paths)
    path = next(paths)
    with _failing(path), _temporary(path.parent, png_bytes(image, settings)) as temporary:
        while not _rename_new(temporary, path):
            path = next(paths)
    return path


def check_writable(argument: str, path: Path, *, folder: bool) -> None:
    """Raise InputError, naming `argument`, unless `path`, or with `folder` a file in it, can be written.

    A folder that is not there yet passes if it can be made; it is not made here.
    """
    real = Path(os.path.realpath(path))
    try:
        if not folder:
            _check_replaceable(real)
        for there in (real, *real.parents) if folder else real.parents:
            with suppress(FileNotFoundError), _temporary(there, b"", make=False):
                return
    except OSError as error:
        raise InputError(argument, str(path), f"{error.strerror}; choose another place") from None


def png_bytes(
    image: Image.Image,
    settings: Mapping[str, Any] | None,
    xmp: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Return the image as a PNG file, with both text chunks: tEXt, or iTXt for text that is not Latin-1.

    `xmp` is an XMP packet, for an iTXt chunk as in part 3 of the XMP specification (section 1.1.5). `texts` are further
    ones by name, as `kept_texts` returns them of the picture that it was made of.
    """
    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text) if name == XMP_CHUNK else info.add_text(name, text)
    if settings is not None:
        info.add_text("parameters", a1111_text(settings))
        info.add_text("jaxl", json.dumps(dict(settings)))
    if xmp is not None:
        info.add_itxt(XMP_CHUNK, xmp)
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def kept_texts(image: Image.Image) -> dict[str, str]:
    """Return the texts of a picture that one made of it keeps: its settings, and whether a machine made it."""
    texts = {name: image.info.get(name) for name in KEPT}
    return {
        name: text for name, text in texts.items() if isinstance(text, str) and len(text) <= MAX_SETTINGS_CHARACTERS
    }


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings that jaxl wrote into a PNG file, as they were given to `write_png`.

    No pixel is decoded. Raises InputError if the file is missing, no PNG, larger than 256 MiB or without settings, or
    if these are longer than a million characters, damaged, or say anything twice.
    """
    name = str(path)
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
                raise InputError("path", name, f"larger than {MAX_FILE_BYTES} bytes; give a PNG that jaxl wrote")
            with Image.open(stream, formats=["PNG"]) as image:
                text = image.info.get("jaxl")
    except OSError as error:
        reason = "not a PNG" if isinstance(error, UnidentifiedImageError) else error.strerror or "a damaged PNG"
        raise InputError("path", name, f"{reason}; give a PNG that jaxl wrote") from None
    except (Image.DecompressionBombError, ValueError, SyntaxError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("path", name, f"a damaged PNG ({error}); give a PNG that jaxl wrote") from None
    if not isinstance(text, str):
        raise InputError("path", name, "no settings of jaxl in this PNG; give one that jaxl wrote")
    return read_settings_text(text, "path", name)


def read_settings_text(text: str, argument: str, shown: str | None = None) -> dict[str, Any]:
    """Read the settings in the `jaxl` text of a file. Raises InputError, as `read_settings` does, naming `argument`.

    `shown` is its value in the message; by default, the beginning of the text.
    """
    shown = text[:100] if shown is None else shown
    if len(text) > MAX_SETTINGS_CHARACTERS:
        raise InputError(argument, shown, f"settings of {len(text)} characters; at most {MAX_SETTINGS_CHARACTERS}")
    try:
        settings = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(argument, shown, f"damaged settings ({error}); give a PNG that jaxl wrote") from None
    if not isinstance(settings, dict):
        raise InputError(argument, shown, "damaged settings (not a JSON object); give a PNG that jaxl wrote")
    return settings


def _check_replaceable(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file, so it is not replaced", str(path))


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _temporary(folder: Path, data: bytes, *, make: bool = True) -> Iterator[Path]:
    """Yield a file in the folder, its bytes on disk, that is removed afterwards unless it was renamed."""
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".jaxl-{secrets.token_hex(8)}.tmp"
    try:
        with path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _rename_new(temporary: Path, path: Path) -> bool:
    """Give the file this name too; return False if something has the name already."""
    try:
        os.link(temporary, path)  # unlike a rename, never replaces a file that another process wrote just now
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is there twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def _refuse_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")
