"""A filter for `jaxl serve` that puts an invisible watermark of four characters into each picture.

    pip install invisible-watermark onnxruntime
    JAXL_WATERMARK=acme jaxl serve --filter examples/watermark.py:mark
    JAXL_WATERMARK=acme python examples/watermark.py PICTURE

The last line tells how many of its 32 bits are found in a picture: nearly all if it is there, about half if it is not.
The package brings PyTorch, and an OpenCV in place of the one that preprocessors use; its networks come with it.
Pictures have at least 256x256 pixels.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image

# a network, which takes seconds, and outlasts JPEG, other sizes and cuts; "dwtDctSvd" is quick, and outlasts JPEG alone
METHOD: Literal["rivaGan", "dwtDctSvd"] = "rivaGan"


def mark(picture: Image.Image, prompt: str) -> Image.Image:
    """Return a picture with the text of JAXL_WATERMARK in it."""
    marked = _package().WatermarkEncoder()
    marked.set_watermark("bits", bits().tolist())
    return Image.fromarray(marked.encode(_bgr(picture), METHOD)[..., ::-1])


def found(picture: Image.Image) -> int:
    """Return how many bits of the text are in a picture."""
    read = _package().WatermarkDecoder("bits", len(bits())).decode(_bgr(picture), METHOD)
    return int((np.asarray(read, int) == bits()).sum())


def bits() -> np.ndarray:
    text = os.environ["JAXL_WATERMARK"].encode("ascii")
    if len(text) != 4:
        raise ValueError("JAXL_WATERMARK has four characters")
    return np.unpackbits(np.frombuffer(text, np.uint8))


@cache
def _package() -> Any:
    """Return the package, with its networks loaded once."""
    package = importlib.import_module("imwatermark")
    package.WatermarkEncoder.loadModel()
    return package


def _bgr(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])


if __name__ == "__main__":
    with Image.open(sys.argv[1]) as picture:
        print(f"{found(picture)} of {len(bits())} bits")
