"""Files that are broken, huge or made to harm: one clear line, in a moment, or settings that can be used."""

import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from PIL import Image
from written_pictures import chunk, hidden, late_png, png, unicode, with_exif

from jaxl.call.options import DrawOptions
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.errors import InputError
from jaxl.metadata import Settings, settings_of
from jaxl.metadata.container import MAX_CHARACTERS, MAX_DEPTH, read_json

KEYWORDS = ("parameters", "prompt", "workflow", "jaxl", "invokeai_metadata", "sd-metadata", "Dream", "Comment")
DEEP = 100_000
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **{"seed": 5, "steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1},
            **{"model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["5", 0]},
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 832, "height": 1216, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a castle", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}
TEXT = "a castle\nNegative prompt: rain\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 8x8, Version: v1.10.1"
FOOOCUS = {"prompt": "a", "metadata_scheme": "fooocus", "resolution": "(8, 8)", "loras": [["a", 1]], "steps": 2}
INVOKE = {
    "positive_prompt": "a",
    "model": {"name": "base"},
    "loras": [{"model": {"name": "a"}, "weight": 1}],
    "seed": 5,
}
SWARM = {"sui_image_params": {"prompt": "a", "loras": ["a"], "loraweights": [1], "seed": 5}, "sui_models": [{}]}


def packed(name: str, size: int) -> bytes:
    """A PNG with a text of so many letters, a thousandth as large."""
    data = png({})
    end = data.index(b"IDAT") - 4
    packer = zlib.compressobj(9)
    letters = b"".join(packer.compress(b"a" * 2**20) for _ in range(size // 2**20)) + packer.flush()
    return data[:end] + chunk(b"zTXt", name.encode() + b"\0\0" + letters) + data[end:]


def header_of(width: int, height: int) -> bytes:
    """A PNG that says that it is large."""
    data = png({"parameters": TEXT})
    start = data.index(b"IHDR") + 4
    header = struct.pack(">II", width, height) + data[start + 8 : start + 13]
    return data[: start - 8] + chunk(b"IHDR", header) + data[start + 17 :]


def damaged_hidden() -> bytes:
    """A picture that has a mark and a length, and no text after it that can be unpacked."""
    image = Image.open(io.BytesIO(hidden("a" * 200, b"stealth_pngcomp")))
    image.paste((0, 0, 0, 255), (3, 0, *image.size))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


NESTED = [name for name in KEYWORDS if name not in ("parameters", "Dream")]
REFUSED: dict[str, Callable[[], bytes]] = {
    "100 MB of compressed text": lambda: packed("parameters", 100 * 2**20),
    "too many pixels": lambda: header_of(60_000, 60_000),
    "cut short": lambda: png({"parameters": TEXT})[:40],
    "no picture": lambda: b"GIF89a" + bytes(100),
    "nothing": lambda: b"",
    "no settings": lambda: png({"Software": "GIMP"}),
    "a hidden text that is damaged": damaged_hidden,
    "a hidden text of 100 MB": lambda: hidden("a" * 100 * 2**20, b"stealth_pngcomp", (1000, 1000)),
    "EXIF that is damaged": lambda: with_exif("JPEG", unicode(TEXT)).replace(b"Exif\0\0MM", b"Exif\0\0XX"),
    "JSON that is too long": lambda: png({"parameters": '{"sui_image_params": {"a": "' + "a" * MAX_CHARACTERS + '"}}'}),
    **{f"lists in {name}": partial(png, {name: "[" * DEEP}) for name in NESTED},
    **{f"objects in {name}": partial(png, {name: '{"a":' * DEEP}) for name in NESTED},
    "closed lists": lambda: png({"prompt": '{"a": ' + "[" * DEEP + "]" * DEEP + "}"}),
    "closed lists late": lambda: late_png("prompt", '{"a": ' + "[" * DEEP + "]" * DEEP + "}"),
    "a huge number": lambda: png({"prompt": f'{{"3": {"9" * DEEP}}}'}),
    "quotes": lambda: png({"prompt": '{"a": "' + '\\"' * DEEP}),
}


@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED)
def test_one_line(write: Callable[[], bytes]) -> None:
    with pytest.raises(InputError) as caught:
        settings_of(write())
    assert re.fullmatch(r"file='a picture': \S.{10,300}", str(caught.value))


@pytest.mark.parametrize("mark", [b"stealth_pnginfo", b"stealth_rgbcomp"])
def test_a_hidden_text_that_says_it_is_longer_than_the_picture(mark: bytes) -> None:
    image = Image.open(io.BytesIO(hidden(TEXT, mark))).crop((0, 0, 12, 67))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    with suppress(InputError):
        assert settings_of(stream.getvalue()).program in ("A1111", "unknown")


def test_json() -> None:
    assert read_json('{"a": NaN}')["a"] != 0
    assert read_json("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    assert read_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)) is None
    assert read_json(json.dumps({"a": "[" * DEEP})) == {"a": "[" * DEEP}  # in a text they are letters
    for text in ("a", "5", "", '{"a": "', "[" * DEEP, None, 5):
        assert read_json(text) is None


NUMBERS: tuple[Any, ...] = (-1, 0, 2**64, 10**400, 1e308, float("nan"), float("inf"), -0.0, True, "1e999", "9" * 400)
ODD: tuple[Any, ...] = (
    *NUMBERS,
    None,
    "",
    "a",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [["a", 0]],
    ["3", 0],
    {"name": {}},
    "x" * 10**5,
)


def test_odd_values() -> None:
    """Each value of each program's files, replaced by what nobody expects, gives arguments of the right kind."""
    for name, whole in (
        *(("parameters", each) for each in (FOOOCUS, SWARM)),
        ("invokeai_metadata", INVOKE),
        ("prompt", GRAPH),
        ("sd-metadata", {"image": {"prompt": [{"prompt": "a"}], "seed": 5, "sampler": "k_lms"}}),
    ):
        for path in paths(whole):
            for odd in ODD:
                check(texts={name: json.dumps(replaced(whole, path, odd))})


def test_broken_texts() -> None:
    """Texts with parts cut out, doubled and changed, by a fixed seed."""
    random_ = random.Random(19)
    parts = [
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
        "\n",
        "\\",
        "Steps: ",
        "9" * 50,
        "\ud800",
        "<lora:a:b>",
        "BREAK",
        "\0",
        "-s",
    ]
    texts = {
        "parameters": [TEXT, json.dumps(FOOOCUS), json.dumps(SWARM)],
        "prompt": [json.dumps(GRAPH)],
        "invokeai_metadata": [json.dumps(INVOKE)],
        "Dream": ['"a castle [rain]" -s 20 -S 5 -W 512 -H 768 -C 7.5 -A k_lms'],
        "jaxl": ['{"prompt": "a", "seed": 5, "loras": {"a": 1}, "controls": [{"name": "a"}]}'],
    }
    for _ in range(400):
        name = random_.choice([*texts])
        text = random_.choice(texts[name])
        for _ in range(random_.randint(1, 4)):
            start, end = sorted(random_.randrange(len(text) + 1) for _ in range(2))
            text = random_.choice(
                (
                    text[:start] + text[end:],
                    text[:end] + text[start:],
                    text[:start] + random_.choice(parts) + text[start:],
                )
            )
        check(texts={name: text})


def test_broken_files() -> None:
    """Files with bytes changed, and cut short."""
    random_ = random.Random(19)
    files = [
        png({"parameters": TEXT}),
        with_exif("JPEG", unicode(TEXT)),
        with_exif("WEBP", unicode(TEXT)),
        hidden(TEXT, b"stealth_pngcomp"),
    ]
    for _ in range(300):
        data = bytearray(random_.choice(files))
        for _ in range(random_.randint(1, 6)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        check(data=bytes(data[: random_.choice((len(data), random_.randrange(len(data))))]))


def check(texts: dict[str, str] | None = None, data: bytes = b"") -> None:
    """Settings come out that `generate` would take, or one line."""
    if texts is not None:
        # as a PNG holds them
        data = png({name: text.encode("utf-8", "replace").decode().replace("\0", "") for name, text in texts.items()})
    try:
        found = settings_of(data)
    except InputError as error:
        line = str(error)
        assert line.startswith("file=")
        assert "\n" not in line
        assert len(line) < 700
        return
    assert set(found.arguments) <= {"prompt", *DrawOptions.__annotations__}
    for line in found.lacking():
        assert "\n" not in line
        assert len(line) < 700
        line.encode()
    if found.program != "jaxl":  # whose own are what `generate` was given, and are checked there
        well_formed(found)


def well_formed(found: Settings) -> None:
    kinds = {
        "seed": int,
        "steps": int,
        "width": int,
        "height": int,
        "guidance_scale": float,
        "prompt": str,
        "noise": str,
    }
    kinds |= {"negative_prompt": str, "clip_skip": int, "strength": float, "loras": dict}
    for name, value in found.arguments.items():
        assert isinstance(value, kinds.get(name, object)), name
        assert not isinstance(value, bool)
    assert 0 <= found.arguments.get("seed", 0) < 2**64
    assert found.arguments.get("scheduler", "euler") in SCHEDULERS


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(path for key, each in inside for path in paths(each, (*before, key)))]


def replaced(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], odd)
    return copied
