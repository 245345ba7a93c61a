"""Adapters merged by diffusers and PEFT: every parameter of the networks is the same here.

diffusers is right for sd-scripts' files only where all alphas are equal, and drops `dora_scale`; for other kinds and
layouts the formulas of `tests/weights/adapters` are the reference.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from adapter_files import SHAPES, change_of, normal, write
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.training_utils import _collate_lora_metadata

from jaxl.weights.adapters.adapter import Adapter, read_adapter
from jaxl.weights.adapters.names import layers, original_names
from jaxl.weights.adapters.peft import METADATA
from jaxl.weights.source import EMBEDDED

LAYERS = [layer for layer in layers(SHAPES) if len(layer.weight) > 1 and "embeddings" not in layer.module]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def pipe() -> Any:
    return diffusers.StableDiffusionXLPipeline.from_pretrained(EMBEDDED["tiny"], torch_dtype=torch.float32)


def parameters(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A network's parameters by their keys in a checkpoint, without those of its adapters."""
    outer = "text_model." if type(module).__name__ == "CLIPTextModel" else ""
    return {
        key if key.startswith(outer) else outer + key: value.numpy().copy()
        for full, value in module.state_dict().items()
        if "lora_" not in (key := full.replace(".base_layer", "")) and "position_ids" not in key
    }


def check(adapter: Adapter, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> None:
    """Assert that the changes, and nothing else, lead from the parameters before to those after."""
    for component, values in before.items():
        changes = adapter.changes.get(component, {})
        assert set(changes) <= set(values)
        for key, value in values.items():
            ours = changes[key].merged(value, 1) if key in changes else value
            np.testing.assert_allclose(ours, after[component][key], atol=2e-5, err_msg=key)


def networks(pipe: Any) -> dict[str, dict[str, np.ndarray]]:
    return {name: parameters(getattr(pipe, name)) for name in ("unet", "text_encoder", "text_encoder_2")}


@pytest.mark.parametrize("alpha", [2.0, None])
def test_sd_scripts(pipe: Any, tmp_path: Path, alpha: float | None) -> None:
    """All layers of all networks under the original names, with one alpha, or ranks that differ and no alpha."""
    original = original_names(layer.module for layer in LAYERS if layer.component == "unet")
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    arrays = {}
    for i, layer in enumerate(LAYERS):
        if layer.module == "text_projection":  # diffusers refuses it
            continue
        path = original[layer.module] if layer.component == "unet" else layer.module
        name = prefixes[layer.component] + path.replace(".", "_")
        rank = 4 if alpha else 2 + i % 3
        out, *inner = layer.weight
        arrays[f"{name}.lora_down.weight"] = 0.1 * normal(rank, *inner)
        arrays[f"{name}.lora_up.weight"] = 0.1 * normal(out, rank, *[1] * (len(inner) - 1))
        if alpha:
            arrays[f"{name}.alpha"] = np.float32(alpha)
    path = write(tmp_path / "x.safetensors", arrays)
    before = networks(pipe)
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora()
    adapter = read_adapter("x", path, SHAPES)
    assert sum(map(len, adapter.changes.values())) == len(LAYERS) - 1
    check(adapter, before, networks(pipe))


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION},
    "convolutions": {"r": 4, "lora_alpha": 6, "target_modules": ["conv1", "conv_shortcut", "proj_in", "time_emb_proj"]},
    "rsLoRA": {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ATTENTION,
        "rank_pattern": {"attn2.to_k": 2},
        "alpha_pattern": {"attn2.to_k": 5, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1},
    },
    "DoRA": {"r": 4, "lora_alpha": 6, "target_modules": [*ATTENTION, "conv1"], "use_dora": True},
    "biases": {"r": 4, "lora_alpha": 6, "target_modules": ["to_out.0", "conv2"], "lora_bias": True},
}


@pytest.mark.filterwarnings("ignore:.*have invalid shape:UserWarning")  # PEFT's own, of the biases that it saves
@pytest.mark.parametrize("name", SETTINGS)
def test_peft(pipe: Any, tmp_path: Path, name: str) -> None:
    before = {"unet": parameters(pipe.unet)}
    config = peft.LoraConfig(**SETTINGS[name], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    for key, value in pipe.unet.named_parameters():
        if "magnitude" in key:
            value.data *= 1 + 0.2 * torch.rand(value.shape, generator=generator)
        elif "lora_" in key:
            value.data = 0.1 * torch.randn(value.shape, generator=generator)
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(pipe.unet),
        **_collate_lora_metadata({"unet": pipe.unet}),
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    adapter = read_adapter("x", path, SHAPES)
    pipe.unet.fuse_lora()
    check(adapter, before, {"unet": parameters(pipe.unet)})
    assert len(adapter.changes["unet"]) > 10


def test_peft_in_text_encoders(pipe: Any, tmp_path: Path) -> None:
    """Each network has its own settings."""
    before = networks(pipe)
    generator = torch.Generator().manual_seed(0)
    encoders = {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
    for alpha, encoder in enumerate(encoders.values(), 3):
        config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "fc1"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, encoder)  # transformers' own way asks for a newer PEFT than there is
        encoder.peft_config = {"default": config}
        for key, value in encoder.named_parameters():
            if "lora_" in key:
                value.data = 0.1 * torch.randn(value.shape, generator=generator)
    pipe.save_lora_weights(
        tmp_path,
        **{f"{name}_lora_layers": peft.get_peft_model_state_dict(encoder) for name, encoder in encoders.items()},
        **_collate_lora_metadata(encoders),
    )
    adapter = read_adapter("x", tmp_path / "pytorch_lora_weights.safetensors", SHAPES)
    for encoder in encoders.values():
        for module in encoder.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.merge()  # pyright: ignore[reportAttributeAccessIssue]
    check(adapter, before, networks(pipe))
    assert min(len(adapter.changes[name]) for name in encoders) >= 6


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("kind", "sizes"), [(torch.nn.Linear, (24, 20)), (torch.nn.Conv2d, (8, 20, 3))])
def test_oft_of_peft(kind: Any, sizes: tuple[int, ...], shared: bool) -> None:
    net = torch.nn.Sequential(kind(*sizes))
    before: Any = net[0].weight.detach().numpy().copy()
    config = peft.OFTConfig(r=0, oft_block_size=4, target_modules=["0"], block_share=shared, init_weights=False)
    peft.inject_adapter_in_model(config, net)
    (rotations,) = [value for key, value in net.named_parameters() if "oft_R" in key]
    rotations.data = 0.2 * torch.randn(rotations.shape, generator=torch.Generator().manual_seed(0))
    found = change_of(before.shape, {"oft_r": rotations.detach().numpy()}).merged(before, 1)
    net[0].merge()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    (merged,) = [value.detach().numpy() for key, value in net.named_parameters() if key.endswith("base_layer.weight")]
    np.testing.assert_allclose(found, merged, atol=1e-5)
    assert np.abs(merged - before).max() > 0.05


def test_the_name_of_the_metadata() -> None:
    assert METADATA == LORA_ADAPTER_METADATA_KEY
