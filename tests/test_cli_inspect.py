"""`jaxl inspect` of what is no checkpoint: adapters, and other files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import normal, write

from jaxl.cli import run

QUERY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of_width(width: int, context: int) -> dict[str, Any]:
    """A LoRA for one layer and the bias of another, of a U-Net so wide that reads texts so wide."""
    return {
        f"{QUERY}.lora_A.weight": normal(4, width).astype(np.float16),
        f"{QUERY}.lora_B.weight": normal(width, 4).astype(np.float16),
        f"{KEY}.lora_down.weight": normal(8, context).astype(np.float16),
        f"{KEY}.lora_up.weight": normal(width, 8).astype(np.float16),
        f"{KEY}.alpha": np.float16(1),
        "lora_unet_conv_in.diff_b": normal(320 if width == 1280 else 64).astype(np.float16),
    }


METADATA = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.trigger_phrase": "a \x1b[31mhat,\nred"}


def test_a_lora(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("style_lcm.safetensors"), of_width(1280, 2048) | {"elsewhere.alpha": np.float16(1)}, METADATA)
    assert run(["inspect", "style_lcm.safetensors", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    digest = report.pop("hash")
    assert len(digest) == 12
    assert report == {
        "file": "style_lcm.safetensors",
        "kind": "a LoRA, which goes on top of a checkpoint",
        "tensors": 7,
        "bytes": 2 * (4 * 2 * 1280 + 8 * (1280 + 2048) + 320 + 2),
        "dtypes": ["float16"],
        "compared_with": "SDXL",
        "changes": {"LoRA": 2, "vector": 1},
        "ranks": [4, 8],
        "parameters": {"unet": 3, "text_encoder": 0, "text_encoder_2": 0},
        "left_out": ["elsewhere.alpha"],
        "embeddings": [],
        "base_model": "sdxl_base_v1-0",
        "trigger_words": ["a \x1b[31mhat", "red"],
        "distilled": "lcm",
    }
    assert run(["inspect", "."]) == 0  # a folder with one file
    out, err = capsys.readouterr()
    assert err == ""
    for line in (
        "changes         2 LoRA, 1 vector",
        "parameters      3 unet",
        "left out        elsewhere.alpha",
        "distilled       lcm",
        "trigger words   a [31mhat, red",
        f"hash            {digest}",
    ):
        assert line in out.splitlines()
    assert "embeddings" not in out


def test_a_lora_for_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("x.safetensors"), of_width(128, 320))
    assert run(["inspect", "x.safetensors", "--model", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == {"LoRA": 2, "vector": 1}
    assert run(["inspect", "x.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "a LoRA of another family, whose U-Net reads texts 320 wide, where this model's are 2048 wide" in out


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"], "a LoRA of Flux or its like"),
        (["clip_l", "clip_g"], "a textual inversion embedding, which goes on top of a checkpoint"),
        (["input_blocks.0.0.weight", "label_emb.0.0.weight"], "a U-Net alone; give it as `unet`, with a whole SDXL as"),
        (["image_proj.x", "ip_adapter.1.to_q_lora.down.weight"], "an IP-Adapter"),
    ],
)
def test_other_files(keys: list[str], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("x.safetensors"), {key: normal(2, 2) for key in keys})
    assert run(["inspect", "x.safetensors"]) == 0
    out = capsys.readouterr().out
    assert f"kind            {kind}" in out
    assert f"tensors         {len(keys)}\n" in out


def test_what_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("x.safetensors"), of_width(1280, 2048) | {f"{KEY}.alpha": np.float16(np.nan)})
    Path("y.pt").write_bytes(b"\x80\x02}.")
    for name, message in [
        ("x.safetensors", "holds NaN"),
        ("y.pt", "does not open pickles"),
        ("z.safetensors", "no such"),
    ]:
        assert run(["inspect", name]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"jaxl: error: {name}: ")
        assert message in err
        assert err.count("\n") == 1
