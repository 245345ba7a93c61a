"""Models of SDXL's layout with random weights, as folders that jaxl and its peers open alike."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxl.errors import InputError, OutputError, nearest
from jaxl.files import cache_folder
from jaxl.presets import SDXL_BASE
from jaxl.run.model import Model
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.layout import EMBEDDINGS, flatten, unflatten
from jaxl.weights.save import save_checkpoint
from jaxl.weights.source import EMBEDDED, open_checkpoint

# what names of such models begin with
RANDOM = "random:"
SEED = 0

# between tiny and SDXL, with tiny's text encoders and autoencoder
MID_UNET: Mapping[str, Any] = {
    "block_out_channels": [128, 256, 512],
    "attention_head_dim": [2, 4, 8],
    "transformer_layers_per_block": [1, 1, 2],
}
# the last layer of a residual branch; small, so that what many of them add up to stays near what went in
RESIDUAL = ("conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight", "fc2.weight", "out_proj.weight")


def source_of(model: str) -> str:
    """Return what a model is loaded from: for one such as "random:mid" its folder, written first, else the same."""
    return str(ensure_random_model(model.removeprefix(RANDOM))) if model.startswith(RANDOM) else model


def random_folder(name: str) -> Path:
    """Return the folder of the random model of this name: in `$JAXL_CACHE_DIR`, else in the user's cache folder.

    Raises InputError for another name than "sdxl", "mid" or "tiny".
    """
    if name not in MODELS:
        raise InputError("model", f"{RANDOM}{name}", nearest(name, MODELS))
    return cache_folder("random") / f"{name}-{SEED}"


def ensure_random_model(name: str) -> Path:
    """The folder of a random model, written first if it is not there. Raises OutputError if it cannot be written.

    A process of its own writes it, so that this one neither takes a device nor has had the weights in memory.
    """
    folder = random_folder(name)
    if not (folder / "model_index.json").is_file():
        command = [sys.executable, "-m", "jaxl.bench.random_model", name]
        done = subprocess.run(
            command,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise OutputError(f"{folder}: {lines[-1]}")
    return folder


def write_random_model(name: str, folder: Path) -> None:
    """Write "sdxl", "mid" or "tiny" with random weights, as bfloat16: the same numbers in any precision."""
    configs, tokenizers = MODELS[name]()
    shapes = Model.from_configs(configs).shapes()
    params = {component: random_params(component, tree) for component, tree in shapes.items()}
    save_checkpoint(folder, configs, params, {part: tokenizer.save for part, tokenizer in tokenizers.items()})


def random_params(component: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """bfloat16 arrays of these shapes: norms at 1, biases at 0, others normal with the variance of 1 / inputs."""
    leaves = flatten(shapes)
    with ThreadPoolExecutor() as pool:  # NumPy draws numbers without Python's lock
        arrays = pool.map(_random, (f"{component}.{key}" for key in leaves), leaves.values())
        return unflatten(dict(zip(leaves, arrays, strict=True)))


def _random(key: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if len(leaf.shape) == 1:
        return np.full(leaf.shape, key.endswith("weight"), ml_dtypes.bfloat16)
    # each tensor has its own seed, so that none depends on the order
    rng = np.random.default_rng([SEED, zlib.crc32(key.encode())])
    scale = 0.02 if key.endswith(EMBEDDINGS) else np.prod(leaf.shape[:-1]) ** -0.5
    if key.endswith(RESIDUAL):
        scale *= 0.1
    array = rng.standard_normal(leaf.shape, np.float32)
    array *= np.float32(scale)
    return array.astype(ml_dtypes.bfloat16)


Parts = tuple[dict[str, Any], dict[str, Tokenizer]]


def _sdxl() -> Parts:
    tiny, _ = _tiny()
    named = {part: {**SDXL_BASE[part], "_class_name": tiny[part]["_class_name"]} for part in ("unet", "vae")}
    index = {**tiny["model_index"], **SDXL_BASE["model_index"]}
    return {**SDXL_BASE, **named, "model_index": index}, {
        "tokenizer": Tokenizer.clip(),
        "tokenizer_2": Tokenizer.clip("!"),
    }


def _mid() -> Parts:
    configs, tokenizers = _tiny()
    return {**configs, "unet": {**configs["unet"], **MID_UNET}}, tokenizers


def _tiny() -> Parts:
    checkpoint = open_checkpoint("tiny")
    tokenizers = {part: Tokenizer.from_dir(EMBEDDED["tiny"] / part) for part in ("tokenizer", "tokenizer_2")}
    return {name: dict(config) for name, config in checkpoint.configs.items()}, tokenizers


MODELS: Mapping[str, Callable[[], Parts]] = {"sdxl": _sdxl, "mid": _mid, "tiny": _tiny}


if __name__ == "__main__":
    write_random_model(sys.argv[1], random_folder(sys.argv[1]))
