"""A whole model of tiny's kind with few layers and random weights, whose programs compile in half the time."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from evaluation import SMALL_UNET
from safetensors.numpy import load_file, save_file

from jaxl.run.model import Model
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.save import save_checkpoint
from jaxl.weights.source import EMBEDDED, open_checkpoint

FEW: dict[str, dict[str, Any]] = {
    "unet": SMALL_UNET | {"sample_size": 8},
    "vae": {"block_out_channels": [8, 8, 16, 16]},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3},
    "text_encoder_2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "projection_dim": 24}
    | {"num_attention_heads": 2},
}
# what a single file can hold: attention in heads of 64, norms of 32 groups, and CLIP's words
WIDE: dict[str, dict[str, Any]] = {
    "unet": FEW["unet"] | {"block_out_channels": [64, 64], "attention_head_dim": [1, 1], "cross_attention_dim": 128},
    "vae": {"block_out_channels": [32] * 4, "norm_num_groups": 32},
    "text_encoder": FEW["text_encoder"] | {"hidden_size": 64, "num_attention_heads": 1, "vocab_size": 49408},
    "text_encoder_2": FEW["text_encoder_2"] | {"hidden_size": 64, "num_attention_heads": 1, "vocab_size": 49408},
}


# what a refiner has: the second text encoder alone, and five size ids
REFINER: dict[str, dict[str, Any]] = FEW | {
    "unet": FEW["unet"] | {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 24 + 5 * 8},
    "model_index": {"text_encoder": [None, None], "tokenizer": [None, None], "force_zeros_for_empty_prompt": False},
}


def write_small_model(folder: Path, few: Mapping[str, Mapping[str, Any]] = FEW) -> None:
    """Write it in diffusers' layout. Its pictures are 64x64 pixels by default; each input has its say in them."""
    configs = {name: {**config, **few.get(name, {})} for name, config in open_checkpoint("tiny").configs.items()}
    if few is REFINER:
        del configs["text_encoder"]
    rng = np.random.default_rng(0)

    def weights(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(shape.shape) == 1:
            return rng.uniform(0.5, 1, shape.shape).astype(np.float32)
        return rng.standard_normal(shape.shape, np.float32) / np.sqrt(np.prod(shape.shape[:-1]))

    params = jax.tree.map(weights, Model.from_configs(configs).shapes())
    params["unet"]["conv_out"]["weight"] /= 2  # so that latents keep the size of noise
    clip = few is WIDE
    tokenizers = {
        name: Tokenizer.clip() if clip else Tokenizer.from_dir(EMBEDDED["tiny"] / name)
        for name in ("tokenizer", "tokenizer_2")[few is REFINER :]
    }
    save_checkpoint(folder, configs, params, {name: tokenizer.save for name, tokenizer in tokenizers.items()})


def write_copy(model: Path, to: Path, seed: int, **more: np.ndarray) -> None:
    """Write a model with other weights in its U-Net alone, in place of one that may be there."""
    shutil.copytree(model, to, dirs_exist_ok=True)
    (file,) = (to / "unet").glob("*.safetensors")
    scale = np.float32(np.random.default_rng(seed).uniform(0.9, 1.1))
    tensors = {key: array * scale for key, array in load_file(next((model / "unet").glob("*.safetensors"))).items()}
    save_file(tensors | more, file)
