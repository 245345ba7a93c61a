"""The texts in a picture's file: PNG's chunks, EXIF's fields, an XMP packet, and what lies hidden in the pixels."""

from __future__ import annotations

import html
import io
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from jaxl.call.images import MAX_FILE_BYTES, MAX_PIXELS
from jaxl.call.infotext import decode_comment, read_a1111_text
from jaxl.errors import InputError
from jaxl.metadata.stealth import hidden_text

File = str | os.PathLike[str] | bytes | Image.Image

FORMATS = ("PNG", "JPEG", "WEBP")
# characters of a text that is read as JSON: graphs of ComfyUI may have millions
MAX_CHARACTERS = 4 * 2**20
# characters of an XMP packet that are looked at
MAX_PACKET = 2**20
# levels of lists, or of objects, far from what makes a parser or anything behind it run out of stack
MAX_DEPTH = 100
# names of texts that have none of their own
COMMENT, HIDDEN, XMP = "UserComment", "hidden", "XMP"
# those that programs write; where there is none, the pixels are looked at
WRITTEN = {"parameters", "prompt", "workflow", "jaxl", "Comment", "invokeai_metadata", "sd-metadata", "Dream"}
WRITTEN |= {COMMENT, XMP}

_XMP_COMMENT = re.compile(r"<exif:UserComment>.{0,200}?<rdf:li[^<>]{0,100}>([^<]*)</rdf:li>", re.DOTALL)
# a text of JSON, closed or not, so that none is looked at twice; and what is no bracket
_TEXT, _OTHERS = re.compile(r'"[^"\\]*+(?:\\[\s\S][^"\\]*+)*+"?'), re.compile(r"[^\[\]{}]+")
_LABELLED = re.compile(r"(prompt|workflow):(?=\s*\{)")


class Texts(dict[str, str]):
    """The texts in a file by their names: keywords of PNG's chunks, EXIF's fields, COMMENT, HIDDEN and XMP.

    `size` is that of the picture, (width, height). What texts say is read once, however many readers ask.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self._objects: dict[str, Mapping[str, Any]] = {}

    def object(self, name: str) -> Mapping[str, Any]:
        """Return the object in a text of JSON; one without names if it is something else."""
        if name not in self._objects:
            found = read_json(self.get(name))
            self._objects[name] = found if isinstance(found, dict) else {}
        return self._objects[name]

    def pairs(self) -> dict[str, str] | None:
        """Return the prompts and pairs in a text as A1111 writes it, in whichever place; None without.

        A text under A1111's own name may be a prompt alone; elsewhere that may be anything.
        """
        return None if self._pairs is None else dict(self._pairs)

    @cached_property
    def _pairs(self) -> Mapping[str, str] | None:
        for name in ("parameters", COMMENT, HIDDEN, "ImageDescription"):
            pairs = read_a1111_text(self.get(name, ""))
            if set(pairs) - {"Prompt", "Negative prompt"} or (pairs and name == "parameters"):
                return pairs
        return None


def read_json(text: object) -> Any:
    """Return what a text says in JSON; None where it is no text, no JSON, too long or deeper than MAX_DEPTH.

    NaN is a number here, as Python writes it.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text) if _is_shallow(text) else None
    except (ValueError, RecursionError):
        return None


def read_texts(file: File, argument: str, max_pixels: int = MAX_PIXELS) -> Texts:
    """Return the texts in a PNG, JPEG or WebP file: a path, its bytes, or the picture as Pillow opened it.

    Pixels are decoded where the file has no text before them, for those that lie behind or in them. Raises InputError,
    naming `argument`, for what is no such file, damaged, or larger than 256 MiB or `max_pixels`.
    """
    shown = str(file) if isinstance(file, str | os.PathLike) else "a picture"

    def refuse(reason: str) -> InputError:
        return InputError(argument, shown, reason)

    try:
        if isinstance(file, Image.Image):
            return _texts_of(file)
        with io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as stream:
            if stream.seek(0, os.SEEK_END) > MAX_FILE_BYTES:
                raise refuse(f"larger than {MAX_FILE_BYTES} bytes; give a picture's file")
            stream.seek(0)
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise refuse(f"the picture has more than {max_pixels} pixels; give a smaller one")
                return _texts_of(image)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise refuse("not a PNG, JPEG or WebP picture, or a damaged one; give one of these") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise refuse(f"the picture has more than {max_pixels} pixels; give a smaller one") from None
    except OSError as error:
        raise refuse(f"{error.strerror or 'damaged or cut short'}; give a picture's file") from None
    except Exception:  # decoders raise all kinds of errors at damaged files, and at texts that unpack to too much
        raise refuse("the file is damaged, or its texts are too large; give the file that the program wrote") from None


def _texts_of(image: Image.Image) -> Texts:
    texts = Texts(image.size)
    _gather(texts, image)
    if not WRITTEN & {*texts}:
        image.load()  # PNG's chunks may come after the pixels
        _gather(texts, image)
        if not WRITTEN & {*texts} and (text := hidden_text(image)):
            texts[HIDDEN] = text
    return texts


def _gather(texts: Texts, image: Image.Image) -> None:
    for name, value in image.info.items():
        if isinstance(name, str) and isinstance(value, str):
            texts[name] = value
        elif name in ("xmp", "XML:com.adobe.xmp"):
            texts[XMP] = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
    packet = texts.pop("XML:com.adobe.xmp", texts.get(XMP, ""))[:MAX_PACKET]
    if comment := _XMP_COMMENT.search(packet):
        texts[XMP] = html.unescape(comment[1])
    else:
        texts.pop(XMP, None)
    for name, value in _exif_of(image).items():
        text = value if isinstance(value, str) else decode_comment(value) if isinstance(value, bytes) else ""
        if label := _LABELLED.match(text):  # ComfyUI's, in whatever field was free
            texts.setdefault(label[1], text[label.end() :])
        elif text.strip("\0 "):
            texts.setdefault(name, text)


def _exif_of(image: Image.Image) -> dict[str, Any]:
    try:
        exif = image.getexif()
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        tags = {ExifTags.Base(tag).name: value for tag, value in exif.items() if tag in ExifTags.TAGS}
        return {**tags, "MakerNote": inner.get(ExifTags.Base.MakerNote), COMMENT: inner.get(ExifTags.Base.UserComment)}
    except Exception:  # damaged metadata raises all kinds of errors
        return {}


def _is_shallow(text: str) -> bool:
    """Return whether lists and objects are closed, and no deeper than a parser can take; JSON's texts do not count."""
    brackets = _OTHERS.sub("", _TEXT.sub("", text))
    for _ in range(MAX_DEPTH):
        if not brackets:
            break
        brackets = brackets.replace("[]", "").replace("{}", "")
    return not brackets
