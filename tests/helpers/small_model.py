"""A whole model of tiny's kind with few layers and random weights, whose programs compile in half the time."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from evaluation import SMALL_UNET

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


def write_small_model(folder: Path) -> None:
    """Write it in diffusers' layout. Its pictures are 64x64 pixels by default; each input has its say in them."""
    configs = {name: {**config, **FEW.get(name, {})} for name, config in open_checkpoint("tiny").configs.items()}
    rng = np.random.default_rng(0)

    def weights(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(shape.shape) == 1:
            return rng.uniform(0.5, 1, shape.shape).astype(np.float32)
        return rng.standard_normal(shape.shape, np.float32) / np.sqrt(np.prod(shape.shape[:-1]))

    params = jax.tree.map(weights, Model.from_configs(configs).shapes())
    params["unet"]["conv_out"]["weight"] /= 2  # so that latents keep the size of noise
    tokenizers = {name: Tokenizer.from_dir(EMBEDDED["tiny"] / name).save for name in ("tokenizer", "tokenizer_2")}
    save_checkpoint(folder, configs, params, tokenizers)
