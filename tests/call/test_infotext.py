"""The text that A1111 and its kin write into pictures: written, and read from whatever they make of it."""

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jaxl
from jaxl.call.infotext import MAX_CHARACTERS, MOST_PARTS, a1111_text, read_a1111_text, text_of

SETTINGS = {
    "version": "0.1.0",
    "model": "tiny",
    "prompt": "a red apple",
    "steps": 25,
    "guidance_scale": 5.0,
    "seed": 1,
    "width": 256,
    "height": 256,
    "scheduler": "euler",
}
LINE = "Steps: 4, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x16"
PAIRS = {"Steps": "4", "Sampler": "Euler a", "CFG scale": "7", "Seed": "1", "Size": "8x16"}
RESOURCES = '[{"type":"checkpoint","modelVersionName":"v1, \\"x\\": {"},{"type":"lora","weight":0.8}]'


def test_a1111_text() -> None:
    text = a1111_text({**SETTINGS, "negative_prompt": "blurry,\nlow quality"})
    assert text.split("\n") == [
        "a red apple",
        "Negative prompt: blurry,",
        "low quality",
        "Steps: 25, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 1, Size: 256x256, Model: tiny, "
        "Version: jaxl 0.1.0",
    ]


def test_textual_inversions_have_their_hashes() -> None:
    text = a1111_text(
        {**SETTINGS, "embeddings": {"EasyNegative": "c74b4e810b03", "a: b, c": "0123456789ab", "own": None}}
    )
    assert 'TI hashes: "EasyNegative: c74b4e810b03, a b c: 0123456789ab", Version: ' in text
    assert read_a1111_text(text)["TI hashes"] == "EasyNegative: c74b4e810b03, a b c: 0123456789ab"
    assert "TI hashes" not in a1111_text({**SETTINGS, "embeddings": {"own": None}})


@pytest.mark.parametrize(
    ("setting", "written"),
    [
        ({"guidance_scale": 7.25}, "CFG scale: 7.25, "),
        ({"scheduler": "dpm++2m_sde_karras"}, "Sampler: DPM++ 2M SDE, Schedule type: Karras, "),
        ({"scheduler": "dpm++2m"}, "Sampler: DPM++ 2M, Schedule type: Checkpoint, "),
        ({"scheduler": "new, better: one"}, 'Sampler: "new, better: one", '),
        ({"model": "/home/me/a, b.safetensors"}, 'Model: "a, b", '),
        ({"model": 'x: "y"'}, 'Model: "x: \\"y\\"", '),
        ({"model": "owner/some-model-1.0"}, "Model: some-model-1.0, "),
        ({"clip_skip": 1}, "Clip skip: 3, "),
    ],
)
def test_a1111_values(setting: dict[str, Any], written: str) -> None:
    assert written in a1111_text({**SETTINGS, **setting}).split("\n")[-1]


def test_loras_are_tags() -> None:
    loras = {"pencil": 0.8, "ink": jaxl.Strength(1.0, 0.5), "oil": jaxl.Strength(-2.0, (0.0, 1.0))}
    digests = {"pencil": "0123456789ab", "chalk": "ba9876543210"}
    text = a1111_text({**SETTINGS, "prompt": "a cat,\n<lora:chalk:1>", "loras": loras, "lora_hashes": digests})
    tags = "<lora:chalk:1> <lora:pencil:0.8> <lora:ink:0.5:1> <lora:oil:0:-2>"
    assert text.split("\n")[:2] == ["a cat,", tags]
    assert read_a1111_text(text)["Lora hashes"] == "pencil: 0123456789ab, chalk: ba9876543210"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "an apple,\nred\nNegative prompt: blurry,\nlow\n"
            'Steps: 4, Sampler: Euler a, Model: "a, \\"b\\": c", Seed: 1',
            {
                "Prompt": "an apple,\nred",
                "Negative prompt": "blurry,\nlow",
                "Steps": "4",
                "Sampler": "Euler a",
                "Model": 'a, "b": c',
                "Seed": "1",
            },
        ),
        ("an apple: red, ripe", {"Prompt": "an apple: red, ripe", "Negative prompt": ""}),
        (
            "Steps: 4, Seed: 1, Size: 8x8",
            {"Prompt": "", "Negative prompt": "", "Steps": "4", "Seed": "1", "Size": "8x8"},
        ),
        (
            'a\nSteps: 4, Seed: 1, Model: "cut',
            {"Prompt": "a", "Negative prompt": "", "Steps": "4", "Seed": "1", "Model": '"cut'},
        ),
        ("", {}),
    ],
)
def test_a1111_text_is_read(text: str, told: dict[str, str]) -> None:
    assert read_a1111_text(text) == told


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (f"{LINE}, Civitai resources: {RESOURCES}, Version: x", {"Civitai resources": RESOURCES, "Version": "x"}),
        (f'{LINE}, Hashes: {{"model": "1a", "lora:b": "2c"}}', {"Hashes": '{"model": "1a", "lora:b": "2c"}'}),
        (LINE.replace("Seed", 'Hashes: {"vae": "1a"}, Seed'), {"Hashes": '{"vae": "1a"}'}),
        (f"{LINE}, Civitai metadata: {{}}", {"Civitai metadata": "{}"}),
        (f"{LINE}, Odd: {{'a': 1, b}}, Version: x", {"Odd": "{'a': 1", "Version": "x"}),
        (f"{LINE}, Cut: [1, 2", {"Cut": "[1"}),
        (LINE.replace(", Seed", ",,, , Seed") + ",,,", {}),
        (f"{LINE}, Model: , no pair, Version: x", {"Model": "", "Version": "x"}),
        (f'{LINE}, Lora hashes: "{"a: 0123456789ab, " * 400}"', {"Lora hashes": "a: 0123456789ab, " * 400}),
        (f"{LINE}\nTemplate: a {{red|blue}} castle, x: 1\nNegative Template: low, quality", {}),
        (f"{LINE}\n\nPosted with Steps: 50, by me", {}),
        (LINE.replace(", CFG", ",\nCFG"), {}),
        (LINE.replace(", CFG", "\nCFG"), {}),
        (LINE.replace("Euler a", "Euler\na").replace("CFG scale", "CFG\r\nscale"), {}),
        (f"Size: 8x16, {LINE.removesuffix(', Size: 8x16')}", {}),
    ],
)
def test_what_fits_is_read(line: str, more: dict[str, str]) -> None:
    expected = {"Prompt": "an apple", "Negative prompt": "low", **PAIRS, **more}
    assert read_a1111_text(f"an apple\nNegative prompt: low\n{line}") == expected


@pytest.mark.parametrize("text", ["{}", '{"version": "Fooocus v2.2.0"}', '{"prompt": "a", "version": 3}'])
def test_json_of_others_is_no_prompt(text: str) -> None:
    assert read_a1111_text(text) == {}


def test_a_prompt_in_braces() -> None:
    assert read_a1111_text(f"{{masterpiece}}, a\n{LINE}") == {
        "Prompt": "{masterpiece}, a",
        "Negative prompt": "",
        **PAIRS,
    }


HOSTILE = {
    "spaces": " ",
    "names": "a: ",
    "words": "a, ",
    "commas": ",",
    "colons": ': "',
    "open quotes": 'a: "b, ',
    "escaped quotes": 'a: "\\", ',
    "backslashes": '\\"',
    "brackets": "[",
    "pairs of brackets": "a: [, ",
    "JSON that breaks": 'a: ["b", ',
    "lines": "a\n",
    "lines of settings": "Steps: 1\n",
    "letters": "a",
}


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_no_text_takes_long(part: str) -> None:
    """Where a time is quadratic, this takes hours."""
    for before in ("", "Steps: 1, a: [", 'Steps: 1, a: "'):
        text = before + part * ((MAX_CHARACTERS - len(before)) // len(part))
        assert set(read_a1111_text(text)) - {"Steps", "a"} <= {"Prompt", "Negative prompt"}


def test_too_many_pairs_and_too_much_text() -> None:
    told = read_a1111_text(", ".join(f"n{i}: {i}" for i in range(20_000)))
    assert len(told) == 2 + MOST_PARTS
    assert read_a1111_text("a" * (MAX_CHARACTERS + 1)) == {}


PARTS = st.sampled_from(
    ["Steps: 2", "\n", ", ", '"', "\\", ": ", "[", "]", "{", "}", "a b", "Template:", "\ud800", "\0", "1"]
)


@given(st.one_of(st.text(), st.lists(PARTS, max_size=40).map("".join)))
@settings(max_examples=100, deadline=None)
def test_anything_is_read(text: str) -> None:
    for name, value in read_a1111_text(text).items():
        assert isinstance(name, str)
        assert isinstance(value, str)


def with_comment(comment: bytes, format: str) -> Image.Image:
    """A picture with EXIF's UserComment, opened from its file."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(stream, format, exif=exif.tobytes())
    return Image.open(stream)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "é 城\nSteps: 4".encode("utf-16-be"),
        b"UNICODE\0" + "é 城\nSteps: 4".encode("utf-16-le"),
        b"\0" * 8 + "é 城\nSteps: 4".encode(),
        b"ASCII\0\0\0" + "é 城\nSteps: 4".encode(),
        "é 城\nSteps: 4".encode(),
    ],
)
def test_the_comment_of_exif(format: str, comment: bytes) -> None:
    assert text_of(with_comment(comment, format)) == "é 城\nSteps: 4"


def test_no_comment() -> None:
    assert text_of(Image.new("RGB", (8, 8))) == text_of(with_comment(b"", "JPEG")) == ""
    damaged = Image.new("RGB", (8, 8))
    damaged.info["exif"] = b"Exif\0\0" + b"\xff" * 20
    assert text_of(damaged) == ""
