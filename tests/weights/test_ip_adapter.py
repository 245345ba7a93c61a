"""IP-Adapters' files: what is read, and what is none, lacks its encoder, or is for another model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation import SMALL
from ip_adapters import image_encoder, tensors
from safetensors.numpy import save_file

from jaxl.config import ResamplerConfig
from jaxl.errors import CheckpointError
from jaxl.weights.ip_adapter import open_ip_adapter


def test_what_shapes_tell(tmp_path: Path) -> None:
    """The encoder may lie beside a file, or in a folder of its name next to the file's own."""
    image_encoder().save_pretrained(tmp_path / "models" / "image_encoder")
    (tmp_path / "sdxl_models").mkdir()
    for name, plus in (("plain", False), ("plus", True)):
        file = tmp_path / "sdxl_models" / f"{name}.safetensors"
        own = tensors(SMALL, 1, plus=plus, tokens=6)
        save_file(own, file)
        opened = open_ip_adapter(file, SMALL)
        assert (opened.config.tokens, opened.config.token_width) == (6, SMALL.cross_attention_dim)
        assert opened.config.resampler == (ResamplerConfig(128, 4, 2, 512) if plus else None)
        assert opened.config.encoder.tokens == 17
        # down, up, then the middle: the last number is the middle's
        last = opened.tensors["unet"]["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
        assert last.key == f"ip_adapter.{2 * len(opened.tensors['unet']) // 2 - 1}.to_v_ip.weight"
        np.testing.assert_array_equal(last.read(), own[last.key])


def without(part: str) -> Any:
    return lambda own: {key: tensor for key, tensor in own.items() if part not in key}


@pytest.mark.parametrize(
    ("name", "change", "encoder", "message"),
    [
        ("a.safetensors", without("i"), True, "not an IP-Adapter but empty"),
        ("a.safetensors", without("ip_adapter."), True, "it has 0 layers of cross-attention, and this U-Net 4"),
        ("a.safetensors", without("ip_adapter.1."), True, "it has 3 layers of cross-attention, and this U-Net 4"),
        ("a.safetensors", without("image_proj.norm"), True, "an IP-Adapter of a kind that jaxl does not run"),
        (
            "a.safetensors",
            lambda own: own,
            False,
            "no image encoder lies beside it; give as `image_encoder`",
        ),
        (
            "a.safetensors",
            lambda own: tensors(SMALL, 1, tokens=4) | {"image_proj.proj.weight": np.zeros((192, 9))},
            True,
            "no image encoder lies beside it",
        ),
        ("ip-adapter-faceid_sdxl.bin", lambda own: own, True, "FaceID, which jaxl does not run: it reads faces by"),
        ("ip-adapter_sdxl.bin", lambda own: own, True, "jaxl does not open pickles"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, change: Any, encoder: bool, message: str) -> None:
    if encoder:
        image_encoder().save_pretrained(tmp_path / "image_encoder")
    save_file(change(tensors(SMALL, 1)), tmp_path / name)
    with pytest.raises(CheckpointError) as error:
        open_ip_adapter(tmp_path / name, SMALL)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_encoders_that_do_not_fit(tmp_path: Path) -> None:
    save_file(tensors(SMALL, 1), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no image encoder there"):
        open_ip_adapter(tmp_path / "a.safetensors", SMALL, image_encoder=tmp_path)
    other = image_encoder()
    other.save_pretrained(tmp_path / "encoder")
    config = tmp_path / "encoder" / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 20', '"projection_dim": 24'))
    with pytest.raises(CheckpointError, match=r"not the encoder of a\.safetensors, which needs .* 20 wide"):
        open_ip_adapter(tmp_path / "a.safetensors", SMALL, image_encoder=tmp_path / "encoder")
