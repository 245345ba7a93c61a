"""LoRAs beside diffusers and PEFT: files as they write or read them, from the file to the latents."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from pipelines import latents_of
from safetensors.torch import save_file
from torch_weights import relative_error

CALL: dict[str, Any] = {
    "prompt": "a rocket",
    "negative_prompt": "a cat",
    "guidance_scale": 4.0,
    "height": 64,
    "width": 64,
}
NOISE = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)


def written(file: Path, networks: dict[str, Any]) -> Path:
    """A file with the adapters of these networks of torch, as diffusers writes it."""
    tensors, metadata = {}, {}
    for prefix, network in networks.items():
        config = network.peft_config["default"].to_dict()
        for key, tensor in peft.get_peft_model_state_dict(network).items():
            tensors[f"{prefix}.{key}"] = tensor.contiguous()
        metadata |= {f"{prefix}.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, default=str)})
    return file


def adapted(network: Any, seed: int, **config: Any) -> Any:
    """A copy of a network of torch, with a random adapter."""
    network = peft.inject_adapter_in_model(peft.LoraConfig(init_lora_weights=False, **config), deepcopy(network))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
        if "lora_magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.8, 1.2, generator=generator)
    return network


@pytest.mark.parametrize(
    ("kind", "strength"),
    [
        ({"r": 4, "lora_alpha": 6}, 0.7),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, -1.0),
        ({"r": 3, "use_dora": True}, 1.0),
        ({"r": 4, "rank_pattern": {"to_q": 7}, "alpha_pattern": {"to_v": 9}}, 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
def test_trained_with_peft(small: Any, reference: Any, tmp_path: Path, kind: dict[str, Any], strength: float) -> None:
    pipe, params = small
    parts = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in"]
    layers = [*parts, *([] if "use_dora" in kind else ["conv1", "conv_shortcut", "downsamplers.0.conv"])]
    texts = ["q_proj", "v_proj", "out_proj", "fc1"]
    networks = {
        "unet": adapted(reference.unet, 1, target_modules=layers, **kind),
        "text_encoder": adapted(reference.text_encoder, 2, target_modules=texts, **kind),
        "text_encoder_2": adapted(reference.text_encoder_2, 3, target_modules=texts, **kind),
    }
    file = written(tmp_path / "some.safetensors", networks)
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.set_scale("default", strength)
    theirs = diffusers.StableDiffusionXLPipeline(**{**reference.components, **networks}, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": 3, "latents": torch.from_numpy(NOISE).permute(0, 3, 1, 2)}
    wanted = latents_of(theirs, **call)
    pipe.add_lora("peft", file)
    try:
        got = pipe.generate(params, **CALL, steps=3, latents=NOISE, output="latents", loras={"peft": strength}).latents
    finally:
        pipe.loras.remove("peft")
    assert relative_error(latents_of(reference, **call), wanted) > 0.05
    assert relative_error(got, wanted) < 2e-4
