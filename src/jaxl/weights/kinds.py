"""The kind of a `.safetensors` file that is not what was asked for, told by its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from jaxl.weights.store import Tensor

LORA = "a LoRA, which goes on top of a checkpoint"
# files that are no part of a Stable Diffusion; the first pattern that some key begins with decides
OTHERS = {
    r"lora_controlnet": "a Control-LoRA, which is a ControlNet in a small form",
    r"(.*[._])?lllite_": "a ControlNet-LLLite",
    r"(image_proj|ip_adapter)\.": "an IP-Adapter",  # some have LoRAs in them
    r"(.*[._])?(lora_|lora\.|hada_w|lokr_w|dora_scale|oft_blocks$|oft_diag$|oft_R\.|lycoris_)": LORA,
    r".*\.(diff|diff_b|w_norm|b_norm|on_input)$": LORA,
    r"(emb_params|clip_[lg])$": "a textual inversion embedding, which goes on top of a checkpoint",
    r"control_model\.|controlnet_|input_hint_block\.|zero_convs\.": "a ControlNet",
    r"adapter\.(body|conv_in)\.|body\.\d+\.(block|resnets)": "a T2I-Adapter",
    r"(.*\.)?double_blocks\.": "a Flux checkpoint",
    r"(.*\.)?joint_blocks\.": "a Stable Diffusion 3 checkpoint",
    r"(transformer\.)?(single_)?transformer_blocks\.": "a transformer in diffusers names (Flux, SD 3 or their like)",
    r"(params\.|params_ema\.)?(body\.\d+\.rdb|conv_first\.|model\.1\.sub\.)": "an upscaler",
}
# the first parts of keys of each network, in the original layout and in diffusers' names
UNET = r"(model\.)?(diffusion_model\.|unet\.)?(input_blocks|output_blocks|middle_block)\."
UNET_DIFFUSERS = r"(model\.)?(diffusion_model\.|unet\.)?(down_blocks|up_blocks|mid_block)\."
VAE = r"(first_stage_model\.|vae\.)?(en|de)coder\.(down|up|mid)\."
VAE_DIFFUSERS = r"(vae\.)?(en|de)coder\.(down_blocks|up_blocks|mid_block)\."
ENCODER = (
    r"(conditioner\.|cond_stage_model\.|text_encoders?\.|text_encoder_2\.)|(.*\.)?transformer\.resblocks\."
    r"|text_model\.|encoder\.layers\."
)
# older Stable Diffusions keep their one text encoder under names of their own
FAMILIES = {r"cond_stage_model\.transformer\.": "1", r"cond_stage_model\.model\.": "2"}
# the model whose text encoders a U-Net was made for, by the width of its attention's input from the text
CONTEXTS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the SDXL refiner", 2048: "SDXL"}
CONTEXT = ".transformer_blocks.0.attn2.to_k.weight"


def kind(tensors: Mapping[str, Tensor]) -> str:
    """Return what a file with these tensors is, to end "not ... but", and what to do with it where that is known."""
    found = other(tensors)
    if found is not None:
        return found
    for pattern, number in FAMILIES.items():
        if _has(tensors, pattern):
            return f"a Stable Diffusion {number} checkpoint"
    if _has(tensors, r"model_ema\.") and not _has(tensors, UNET):
        return "a checkpoint with only the moving average of its U-Net; get one with the weights themselves"
    networks = {
        "U-Net": _has(tensors, UNET, UNET_DIFFUSERS),
        "VAE": _has(tensors, VAE, VAE_DIFFUSERS),
        "text encoder": _has(tensors, ENCODER),
    }
    found = [name for name, there in networks.items() if there]
    sized = any("label_emb." in key or "add_embedding." in key for key in tensors)  # SDXL takes sizes, older ones not
    if found == ["U-Net"]:
        way = "give it as `unet`, with a whole SDXL as `model`" if sized else "SDXL's has a label_emb"
        return f"{_unet(tensors)} alone; {way}"
    if found == ["VAE"]:
        names = " in diffusers names" if _has(tensors, VAE_DIFFUSERS) else ""
        way = "give the folder that it is a part of" if names else "give it as `vae`"
        return f"a VAE{names} alone; {way}"
    if found == ["text encoder"]:
        return "a text encoder alone"
    if "U-Net" in found and not sized:
        return "a Stable Diffusion 1 or 2 checkpoint, without label_emb"
    if found:
        return f"a file of a {' and a '.join(found)}, but not in SDXL's original layout"
    first = ", ".join(list(tensors)[:3])
    return f"a file of {first}" if first else "empty"


def other(keys: Iterable[str]) -> str | None:
    """Return what a file with these keys is if it is no part of a Stable Diffusion, else None."""
    return next((name for pattern, name in OTHERS.items() if _has(keys, pattern)), None)


def _unet(tensors: Mapping[str, Tensor]) -> str:
    """Name the U-Net by the width of the texts that it takes, where that is known."""
    names = " in diffusers names" if _has(tensors, UNET_DIFFUSERS) else ""
    width = next((tensor.shape[-1] for key, tensor in tensors.items() if key.endswith(CONTEXT) and tensor.shape), None)
    family = CONTEXTS.get(width or 0)
    return f"a U-Net{names}{f' of {family}' if family else ''}"


def _has(keys: Iterable[str], *patterns: str) -> bool:
    return any(re.match(pattern, key) for pattern in patterns for key in keys)
