"""Files of textual inversions, written as each trainer does, and files that are none for SDXL."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxl.errors import CheckpointError
from jaxl.weights.inversions import Inversion, Summary, read_folder, read_inversions
from jaxl.weights.store import write_safetensors

SDXL = {"text_encoder": 768, "text_encoder_2": 1280}
SMALL = {"text_encoder": 4, "text_encoder_2": 6}
MOST = 75


def vectors(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def write(file: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(file, {key: (array.dtype, array.shape) for key, array in tensors.items()}, tensors.__getitem__)
    return file


def read(file: Path, widths: Mapping[str, int] = SMALL) -> Inversion:
    (found,) = read_inversions(file, widths, MOST)
    return found


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("clip_l", "clip_g"), np.float32),
        (("clip_g", "clip_l"), np.float16),
        (("clip_l", "clip_g"), ml_dtypes.bfloat16),
        (("text_encoders_0", "text_encoders_1"), np.float32),
    ],
)
def test_a_file_of_both_encoders(tmp_path: Path, names: tuple[str, ...], dtype: Any) -> None:
    first, second = vectors(3, 4, dtype=dtype), vectors(3, 6, dtype=dtype)
    tensors = {name: second if name in ("clip_g", "text_encoders_1") else first for name in names}
    file = write(tmp_path / "EasyNegative.v2.safetensors", tensors)
    found = read(file)
    assert (found.name, found.source, found.places) == ("EasyNegative.v2", file, 3)
    assert all(each.dtype == np.float32 for each in found.vectors.values())
    np.testing.assert_array_equal(found.vectors["text_encoder"], first.astype(np.float32))
    np.testing.assert_array_equal(found.vectors["text_encoder_2"], second.astype(np.float32))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.summary == Summary("EasyNegative.v2", places=3, width=10, hash=digest[:12])


@pytest.mark.parametrize(
    ("key", "shape", "widths", "encoder"),
    [
        ("clip_l", (2, 768), SDXL, "text_encoder"),
        ("clip_l", (768,), SDXL, "text_encoder"),
        ("clip_g", (2, 1280), SDXL, "text_encoder_2"),
        ("<my-cat>", (1280,), SDXL, "text_encoder_2"),
        ("<my-cat>", (2, 1280), {"text_encoder_2": 1280}, "text_encoder_2"),
    ],
)
def test_a_file_of_one_encoder(
    tmp_path: Path, key: str, shape: tuple[int, ...], widths: dict[str, int], encoder: str
) -> None:
    file = write(tmp_path / "cat.safetensors", {key: vectors(*shape)})
    found = read(file, widths)
    assert list(found.vectors) == [encoder]
    np.testing.assert_array_equal(found.vectors[encoder], np.atleast_2d(vectors(*shape)))


def test_a_model_with_one_encoder_takes_its_half(tmp_path: Path) -> None:
    refiner = {"text_encoder_2": 6}
    file = write(tmp_path / "a.safetensors", {"clip_l": vectors(2, 768), "clip_g": vectors(2, 6)})
    assert list(read(file, refiner).vectors) == ["text_encoder_2"]
    assert read(write(tmp_path / "b.safetensors", {"clip_l": vectors(2, 768)}), refiner).places == 0


def test_those_in_a_lora(tmp_path: Path) -> None:
    """The names may have points, as A1111, ComfyUI and OneTrainer have them."""
    file = write(
        tmp_path / "lora.safetensors",
        {
            "lora_unet_x.lora_down.weight": vectors(2, 3),
            "bundle_emb.a.b.clip_l": vectors(1, 4),
            "bundle_emb.a.b.clip_g": vectors(1, 6),
            "bundle_emb.c.clip_g": vectors(2, 6),
        },
    )
    found = read_inversions(file, SMALL, MOST)
    assert [(each.name, each.places, each.sha256) for each in found] == [("a.b", 1, None), ("c", 2, None)]


NAN = np.where(np.eye(2, 768) > 0, np.nan, 0).astype(np.float32)
PICKLE = b"\x80\x02}q\x00X\x0f\x00\x00\x00string_to_token"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": vectors(2, 768)}, "Stable Diffusion 1, emb_params of width 768; get one for SDXL, with clip_l"),
        ({"emb_params": vectors(2, 1024)}, "Stable Diffusion 2, emb_params of width 1024; get one for SDXL"),
        ({"string_to_param.*": vectors(2, 768)}, "Stable Diffusion 1"),
        ({"emb_params": vectors(2, 1280)}, "another Stable Diffusion"),
        ({"<cat>": vectors(768)}, "Stable Diffusion 1, <cat> .*; if it is SDXL's first half, call it clip_l"),
        ({"<cat>": vectors(1024)}, "Stable Diffusion 2, <cat>"),
        ({"<cat>": vectors(2, 320)}, "<cat> of width 320 does not say which .*; call it clip_l or clip_g"),
        ({"clip_l": vectors(2, 1024)}, "1024 for text_encoder, as those of Stable Diffusion 2 are, .* 768; get one"),
        ({"clip_l": vectors(2, 768), "clip_g": vectors(2, 768)}, "768 for text_encoder_2, as .* 1 are.* 1280"),
        ({"clip_l": vectors(2, 768), "clip_g": vectors(3, 1280)}, "2 for text_encoder and 3 for text_encoder_2"),
        ({"clip_l": vectors(2, 768), "text_encoders_0": vectors(2, 768)}, "two tensors for text_encoder; keep one"),
        ({"clip_l": vectors(2, 768), "step": vectors(1)}, "beside its vectors there is step"),
        ({"clip_g": vectors(1, 1280), "clip_g_out": vectors(1, 1280)}, r"clip_g_out .*OneTrainer.*; train it without"),
        ({"clip_l": vectors(0, 768)}, r"clip_l has shape \(0, 768\)"),
        ({"clip_l": vectors(1, 1, 768)}, r"clip_l has shape \(1, 1, 768\)"),
        ({"clip_l": np.ones((2, 768), np.int32)}, "clip_l holds int32"),
        ({"clip_l": NAN}, "clip_l holds NaN or infinity"),
        ({"clip_l": np.full((1, 768), 1e300)}, "clip_l holds NaN or infinity"),
        ({"clip_l": vectors(76, 768)}, "clip_l has 76 vectors, but there is room for 75"),
        ({}, "not a textual inversion, but empty"),
        ({"lora_unet_x.lora_down.weight": vectors(2, 3)}, "not a textual inversion, but a LoRA"),
        ({"a": vectors(2, 3), "b": vectors(2, 3)}, "not a textual inversion, but a file of a, b"),
        ({"bundle_emb.x.clip_l_out": vectors(1, 768)}, "file.safetensors: x: clip_l_out"),
    ],
)
def test_what_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    file = write(tmp_path / "file.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_inversions(file, SDXL, MOST)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (PICKLE, "a pickle, which can run code"),
        (b"PK\x03\x04\0\0\x08\x08" + bytes(60), "torch.save"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "a picture"),
        (b"RIFF\x10\0\0\0WEBP" + bytes(60), "a picture"),
        (struct.pack("<Q", 100) + b"{}", "truncated"),
        (struct.pack("<Q", 60) + json.dumps({"clip_l": 1}).encode().ljust(60), "corrupt"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_inversions(file, SDXL, MOST)
    with pytest.raises(CheckpointError, match="no such file"):
        read_inversions(tmp_path / "nothing.safetensors", SDXL, MOST)


def test_a_folder(tmp_path: Path) -> None:
    for name in ("b.safetensors", "deeper/c.SAFETENSORS", "deeper/B.safetensors", " .safetensors"):
        write(tmp_path / name, {"clip_l": vectors(1, 4), "clip_g": vectors(1, 6)})
    write(tmp_path / "old.safetensors", {"emb_params": vectors(1, 768)})
    (tmp_path / "older.pt").write_bytes(PICKLE)
    (tmp_path / "b.png").write_bytes(b"a preview")
    (tmp_path / "notes.txt").write_text("good ones")
    found, left = read_folder(tmp_path, SMALL, MOST)
    assert {each.name for each in found} == {"b", "c"}
    problems = {each.name: each.problem or "" for each in left}
    assert problems.keys() == {"B", " ", "old", "older"}
    assert "b.safetensors has the name 'b' already" in problems["B"]
    assert "no name" in problems[" "]
    assert "Stable Diffusion 1" in problems["old"]
    assert "pickle" in problems["older"]
