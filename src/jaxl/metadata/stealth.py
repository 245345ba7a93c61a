"""Texts hidden in the lowest bits of a picture's pixels: "stealth PNG info" of NovelAI, Forge and SwarmUI.

The bits go down the columns, the left one first: one of the opacity of each pixel, or three, of red, green and blue.
They are 15 characters that say which and whether what follows is compressed, 32 bits with the length of that in bits,
and the text in UTF-8 (https://github.com/NovelAI/novelai-image-metadata, `nai_meta.py`).
"""

from __future__ import annotations

import zlib

from PIL import Image

MARK_BYTES, LENGTH_BYTES = 15, 4
# marks by the picture's channels, each with whether the text is compressed
MARKS = {
    "A": {b"stealth_pnginfo": False, b"stealth_pngcomp": True},
    "RGB": {b"stealth_rgbinfo": False, b"stealth_rgbcomp": True},
}
# bytes of a text, unpacked
MAX_BYTES = 4 * 2**20
LOWEST_BITS = bytes(b"01"[value & 1] for value in range(256))


def hidden_text(image: Image.Image) -> str:
    """Return the text that is hidden in a picture, "" if there is none. Decodes the pixels."""
    if image.mode not in ("RGB", "RGBA"):
        return ""
    for channels, marks in MARKS.items():
        if not set(channels) <= set(image.mode):
            continue
        bits = _Bits(image, channels)
        packed = marks.get(bits.take(0, MARK_BYTES))
        if packed is None:
            continue
        count = int.from_bytes(bits.take(MARK_BYTES, LENGTH_BYTES), "big") // 8
        data = bits.take(MARK_BYTES + LENGTH_BYTES, min(count, MAX_BYTES))
        return _unpacked(data).decode("utf-8", "replace") if packed else data.decode("utf-8", "replace")
    return ""


class _Bits:
    """The lowest bits of a picture's channels, as bytes."""

    def __init__(self, image: Image.Image, channels: str):
        self.image, self.channels = image, channels

    def take(self, start: int, count: int) -> bytes:
        """Return bytes from a place on, as far as the picture goes; only columns that have them are looked at."""
        width, height = self.image.size
        per_column = height * len(self.channels)
        columns = min(-(-8 * (start + count) // per_column), width)
        part = self.image.crop((0, 0, columns, height))
        part = part.getchannel("A") if self.channels == "A" else part.convert("RGB")
        bits = part.transpose(Image.Transpose.TRANSPOSE).tobytes().translate(LOWEST_BITS)
        bits = bits[8 * start : 8 * (start + count)]
        whole = len(bits) // 8
        return int(bits[: 8 * whole] or b"0", 2).to_bytes(whole, "big")


def _unpacked(data: bytes) -> bytes:
    """Return what gzip or zlib packed, "" if it is damaged or more than MAX_BYTES."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        text = unpacker.decompress(data, MAX_BYTES)
    except zlib.error:
        return b""
    return b"" if unpacker.unconsumed_tail else text
