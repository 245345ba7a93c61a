"""What is drawn under MLPerf's load: captions, and the noise that every picture starts from."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from jaxl.errors import CheckpointError, InputError
from jaxl.weights.store import read_header

# things that the embedded model knows, on its backgrounds
_THINGS = ("red apple", "rocket", "castle", "llama", "dolphin", "lighthouse", "guitar", "mushroom", "teapot", "bicycle")
_COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "gray", "white", "black")
CAPTIONS = tuple(f"a {thing} on a {colour} background, flat style" for thing, colour in product(_THINGS, _COLOURS))

CAPTIONS_REMEDY = (
    "give a .tsv file with a column `caption`, as MLPerf's captions_source.tsv has, a .json file with a list of texts "
    "or COCO's annotations, or a .txt file with one on each line"
)
LATENTS_REMEDY = "give the numbers of one picture, [4, h, w] or [1, 4, h, w] as MLPerf's latents.npy has them"


def read_captions(file: Path) -> list[str]:
    """The captions of a file, in its order, which is the order of LoadGen's indices. Raises InputError."""
    readers = {".tsv": _tsv, ".json": _json, ".txt": _lines}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise InputError("captions", str(file), CAPTIONS_REMEDY)
    try:
        captions = [" ".join(text.split()) for text in reader(file.read_text(encoding="utf-8"))]
    except OSError as error:
        raise InputError("captions", str(file), f"it cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("captions", str(file), CAPTIONS_REMEDY) from None
    if not captions:
        raise InputError("captions", str(file), "there are none in it")
    return captions


def read_latents(file: Path) -> np.ndarray:
    """The noise of a .npy or .safetensors file, in PyTorch's layout, as float32 [1, h, w, C]. Raises InputError.

    Files of torch.save are pickles, which could run any code, and are refused.
    """
    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
        elif file.suffix == ".safetensors":
            (tensor,) = read_header(file).values()
            array = tensor.read()
        else:
            remedy = "give a .npy or .safetensors file; nothing here reads pickles, and MLPerf has latents.npy as well"
            raise InputError("latents", str(file), remedy)
    except OSError as error:
        raise InputError("latents", str(file), f"it cannot be read ({error.strerror})") from None
    except CheckpointError as error:
        raise InputError("latents", str(file), str(error)) from None
    except InputError:
        raise
    except ValueError:
        raise InputError("latents", str(file), LATENTS_REMEDY) from None
    if array.ndim not in (3, 4) or (array.ndim == 4 and len(array) != 1) or array.dtype.kind not in "fV":
        raise InputError("latents", str(file), LATENTS_REMEDY)
    return np.moveaxis(array.reshape(1, *array.shape[-3:]), 1, -1).astype(np.float32)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _tsv(text: str) -> list[str]:
    return [row["caption"] for row in csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_MINIMAL)]


def _json(text: str) -> list[str]:
    """Return the captions of a list of texts, of a list of objects with a caption, or of COCO's annotations."""
    found: Any = json.loads(text)
    entries = found["annotations"] if isinstance(found, dict) else found
    return [entry if isinstance(entry, str) else entry["caption"] for entry in entries]
