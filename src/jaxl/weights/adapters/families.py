"""Adapters that are for other models than the one at hand, told by their keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from jaxl.weights.adapters.names import Layer
from jaxl.weights.adapters.parts import split_key
from jaxl.weights.kinds import CONTEXTS
from jaxl.weights.store import Tensor

# the first pattern that some key begins with decides
OTHERS: Mapping[str, str] = {
    r"lora_controlnet": "a Control-LoRA, which is a ControlNet in a small form",
    r"(.*[._])?lllite_": "a ControlNet-LLLite",
    r"(.*[._])?(ip_adapter|image_proj)\.": "an IP-Adapter, maybe with its LoRA",
    r"(.*[._])?(double_blocks|single_blocks|single_transformer_blocks)[._]": "a LoRA of Flux or its like",
    r"(.*[._])?joint_blocks[._]": "a LoRA of Stable Diffusion 3",
    r"transformer\.|lora_transformer_": "a LoRA of a diffusion transformer, as Flux and Qwen-Image are",
    r"(lora_unet_|diffusion_model\.)(blocks|layers)[._]": "a LoRA of a diffusion transformer, as Wan and Lumina are",
}
OLD_ENCODER = "lora_te_"  # with a number in SDXL, whose encoders are two
# the parts of which the last axis is the width of the layer's input
INPUTS = ("down", "hada_w1_b", "hada_w2_b", "b2")
TEXT_INPUT = re.compile(r".*attn2[._](processor[._])?to_[kv]")


def foreign(tensors: Mapping[str, Tensor], known: Iterable[Layer]) -> str | None:
    """Return what a file of adapters is, where it is not for the model with the `known` layers; None if it may be."""
    for pattern, name in OTHERS.items():
        if any(re.match(pattern, key) for key in tensors):
            return name
    known = list(known)
    own = {layer.weight[1] for layer in known if layer.component == "unet" and TEXT_INPUT.fullmatch(layer.module)}
    given = _text_width(tensors)
    if given is not None and own and given not in own:
        family = f"a LoRA of {CONTEXTS[given]}" if given in CONTEXTS else "a LoRA of another family"
        return f"{family}, whose U-Net reads texts {given} wide, where this model's are {min(own)} wide"
    two = any(layer.component == "text_encoder" for layer in known)
    if given is None and two and any(key.startswith(OLD_ENCODER) for key in tensors):
        return "a LoRA of Stable Diffusion 1 or 2, which have one text encoder"
    return None


def _text_width(tensors: Mapping[str, Tensor]) -> int | None:
    """Return how wide the texts are that the U-Net's attention reads, None if no tensor tells."""
    for key, tensor in tensors.items():
        stem, part = split_key(key) or ("", "")
        if part in INPUTS and TEXT_INPUT.fullmatch(stem) and len(tensor.shape) >= 2:
            return tensor.shape[1]
    return None
