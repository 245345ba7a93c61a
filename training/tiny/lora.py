"""Train the LoRA `chalk`: a third drawing style for `tiny`, learned from nothing but what `tiny` draws.

    python lora.py --out chalk.safetensors

Pictures of random scenes become drawings in chalk by an image filter; factors of the U-Net's attention and feed-forward
layers learn to draw them so. It needs jaxl, whose networks it trains, and no PyTorch.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxl
import numpy as np
from jax import Array
from jaxl.nn.layer_kinds import DOWN, UP, adapted
from jaxl.nn.unet import unet, unet_context
from jaxl.run.model import Model
from jaxl.weights.adapters.names import original_names
from jaxl.weights.layout import flatten, unflatten
from jaxl.weights.winograd import without_winograd
from safetensors.numpy import save_file

from captions import random_caption
from chalk import chalk
from lessons import CONCEPTS, Lessons, draw, encode, noisy, train, whole_scenes

METADATA = {
    "ss_network_module": "networks.lora",
    "ss_output_name": "chalk",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.title": "chalk",
    "modelspec.description": "White outlines on a board of one cool colour, for jaxl's model tiny; no trigger words",
    "modelspec.license": "Apache-2.0",
}

Factors = dict[str, Array]  # by path of a layer and name of a factor


class Fixed(NamedTuple):
    """What is not trained: the U-Net, and what it is to draw."""

    network: Any
    lessons: Lessons


def new_factors(network: Any, rank: int, key: Array) -> Factors:
    """Return factors of the linear layers in the U-Net's transformers, whose products are zero."""
    weights = {
        path.removesuffix(".weight"): leaf
        for path, leaf in flatten(network).items()
        if ".attentions." in path and path.endswith(".weight") and leaf.ndim == 2
    }
    factors: Factors = {}
    for (path, weight), own in zip(weights.items(), jax.random.split(key, len(weights)), strict=True):
        inputs, outputs = weight.shape
        factors[f"{path}.{DOWN}"] = jax.random.normal(own, (1, inputs, rank)) * inputs**-0.5
        factors[f"{path}.{UP}"] = jnp.zeros((1, rank, outputs))
    return factors


def loss(model: Model, alphas: Array, batch: int, factors: Factors, fixed: Fixed, key: Array) -> Array:
    """Return the weighted error of the noise that the U-Net predicts with the factors, for a random batch."""
    some = noisy(alphas, fixed.lessons, batch, key)
    network = adapted(fixed.network, unflatten(factors))
    predicted, _ = unet(
        network,
        model.unet,
        some.latents,
        some.timesteps,
        unet_context(network, some.prompt_embeds),
        some.pooled,
        some.time_ids,
        kernels=model.kernels,
    )
    return some.error(predicted)


def train_factors(
    pipe: jaxl.Pipeline, params: Any, lessons: Lessons, *, rank: int, steps: int, batch: int, rate: float, seed: int
) -> Factors:
    """Return factors that learned to draw the lessons."""
    start, key = jax.random.split(jax.random.key(seed))
    alphas = jnp.asarray(pipe.model.scheduler.noise.alphas_cumprod(np.float32))
    network = without_winograd(params["unet"])  # plain convolutions are quicker where there are gradients
    of_factors = partial(loss, pipe.model, alphas, batch)
    return train(
        new_factors(network, rank, start), of_factors, Fixed(network, lessons), steps=steps, rate=rate, key=key
    )


def save(file: Path, factors: Factors, network: Any) -> None:
    """Write factors in float16, in the layout and with the names of kohya's scripts."""
    tensors: dict[str, np.ndarray] = {}
    names = original_names(path.removesuffix(".weight") for path in flatten(network))
    for layer in sorted({path.rpartition(".")[0] for path in factors}):
        down, up = (np.asarray(factors[f"{layer}.{name}"])[0].T for name in (DOWN, UP))
        name = f"lora_unet_{names[layer].replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = np.ascontiguousarray(down, np.float16)
        tensors[f"{name}.lora_up.weight"] = np.ascontiguousarray(up, np.float16)
        tensors[f"{name}.alpha"] = np.array(len(down), np.float16)
    rank = str(next(iter(factors.values())).shape[-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {**METADATA, "ss_network_dim": rank, "ss_network_alpha": rank})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()

    pipe, params = jaxl.from_pretrained("tiny", dtype=jnp.float32)
    scenes = whole_scenes(args.pictures, args.seed)
    rng = np.random.default_rng(args.seed)
    captions = [random_caption(scene, CONCEPTS, rng) for scene in scenes]
    lessons = encode(pipe, params, captions, [chalk(picture) for picture in draw(pipe, params, scenes)])
    factors = train_factors(
        pipe, params, lessons, rank=args.rank, steps=args.steps, batch=args.batch, rate=args.lr, seed=args.seed
    )
    save(args.out, factors, params["unet"])
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
