"""Small pictures with texts in them, as programs write them."""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(texts: Mapping[str, Any], size: tuple[int, int] = (8, 8), *, packed: bool = False) -> bytes:
    """A PNG with text chunks: tEXt, iTXt for what is not Latin-1, or zTXt; what is no text becomes JSON."""
    info, stream = PngInfo(), io.BytesIO()
    for name, value in texts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if name == "XML:com.adobe.xmp":
            info.add_itxt(name, text)
        else:
            info.add_text(name, text, zip=packed)
    Image.new("RGB", size).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def late_png(name: str, text: str) -> bytes:
    """A PNG whose text comes after the pixels."""
    data = png({})
    end = data.index(b"IEND") - 4
    return data[:end] + chunk(b"tEXt", name.encode() + b"\0" + text.encode("latin-1")) + data[end:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_exif(format: str, comment: bytes | None = None, **fields: str) -> bytes:
    """A picture with EXIF's UserComment, and other fields by their names in Pillow's table."""
    exif, stream = Image.Exif(), io.BytesIO()
    for name, value in fields.items():
        exif[ExifTags.Base[name]] = value
    if comment is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (8, 8)).save(stream, format, exif=exif.tobytes())
    return stream.getvalue()


def unicode(text: str, order: str = "be") -> bytes:
    """EXIF's UserComment in UTF-16."""
    return b"UNICODE\0" + text.encode(f"utf-16-{order}")


def hidden(text: str, mark: bytes, size: tuple[int, int] = (61, 67)) -> bytes:
    """A PNG with a text in the lowest bits of its pixels; the mark says of which, and whether it is compressed."""
    data = gzip.compress(text.encode()) if mark.endswith(b"comp") else text.encode()
    whole = mark + struct.pack(">I", 8 * len(data)) + data
    bits = np.unpackbits(np.frombuffer(whole, np.uint8))
    width, height = size
    channels = 4 if b"png" in mark else 3
    pixels = np.full((width, height, channels), (200, 100, 50, 254)[:channels], np.uint8)  # columns first
    used = (pixels[..., 3] if channels == 4 else pixels).reshape(-1)
    used[: len(bits)] = used[: len(bits)] & ~np.uint8(1) | bits
    pixels[..., 3 if channels == 4 else slice(None)] = used.reshape(
        pixels[..., 3].shape if channels == 4 else pixels.shape
    )
    stream = io.BytesIO()
    Image.fromarray(pixels.swapaxes(0, 1)).save(stream, "PNG")
    return stream.getvalue()
