"""Train the LoRA `chalk`: a third drawing style for `tiny`, learned from nothing but what `tiny` draws.

    python lora.py --out chalk.safetensors

Pictures of random scenes become drawings in chalk by an image filter; factors of the U-Net's attention and feed-forward
layers learn to draw them so. Unlike the other scripts, this one needs jaxl, whose networks it trains, and no PyTorch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxl
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxl.nn.layer_kinds import DOWN, UP, adapted
from jaxl.nn.unet import unet, unet_context
from jaxl.run.model import Model
from jaxl.run.steps import encode_image, encode_text
from jaxl.weights.adapters.names import original_names
from jaxl.weights.layout import flatten, unflatten
from jaxl.weights.winograd import without_winograd
from PIL import Image
from safetensors.numpy import save_file

from captions import full_caption, random_caption
from chalk import chalk
from scenes import SIZE, Scene, SceneSampler, load_concepts

CONCEPTS = load_concepts()
HELD_OUT = 8  # every eighth thing is not drawn, to see what the style makes of new ones
FIRST_SEED, DRAWN_AT_ONCE = 1000, 8
EMPTY_SHARE = 0.2  # of samples trained with the empty caption, which guidance compares with
MAX_SNR = 5.0
REPORT_EVERY = 50
TIME_IDS = np.array((SIZE, SIZE, 0, 0, SIZE, SIZE), np.float32)
METADATA = {
    "ss_network_module": "networks.lora",
    "ss_output_name": "chalk",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.title": "chalk",
    "modelspec.description": "White outlines on a board of one cool colour, for jaxl's model tiny; no trigger words",
    "modelspec.license": "Apache-2.0",
}

Factors = dict[str, Array]  # by path of a layer and name of a factor


class Lessons(NamedTuple):
    """What is to be drawn: latents [N, h, w, 4], prompt_embeds [N, T, D] and pooled [N, P]."""

    latents: Array
    prompt_embeds: Array
    pooled: Array


class State(NamedTuple):
    """The factors in one row, and the moments of their gradients."""

    values: Array
    mean: Array
    square: Array


def whole_scenes(count: int, seed: int) -> list[Scene]:
    """Return random scenes that are not cut or enlarged, without held-out things."""
    sampler = SceneSampler(CONCEPTS, seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = sampler.draw()
        if scene.time_ids == tuple(TIME_IDS) and all(item.concept % HELD_OUT for item in scene.items):
            found.append(scene)
    return found


def draw(pipe: jaxl.Pipeline, params: Any, scenes: Sequence[Scene]) -> list[Image.Image]:
    """Return a picture of each scene, by the caption that leaves nothing out."""
    captions = [full_caption(scene, CONCEPTS) for scene in scenes]
    pictures: list[Image.Image] = []
    for first in range(0, len(captions), DRAWN_AT_ONCE):
        some, seed = captions[first : first + DRAWN_AT_ONCE], FIRST_SEED + first
        pictures += pipe.generate(params, some, seed=seed, steps=10, scheduler="dpm++2m_karras").images
    return pictures


def encode(pipe: jaxl.Pipeline, params: Any, captions: Sequence[str], pictures: Sequence[Image.Image]) -> Lessons:
    """Return the lessons of pictures with these captions; the last one is the empty caption, without a picture."""
    model = pipe.model
    to_latents = jax.jit(partial(encode_image, model))
    to_text = jax.jit(partial(encode_text, model))
    latents = []
    for picture in pictures:
        pixels = np.asarray(picture, np.float32)[None] / 127.5 - 1.0
        latents.append(to_latents(params["vae"], pixels))
    texts = []
    for caption in [*captions, ""]:
        ids = {name: tokenizer.encode(caption).ids for name, tokenizer in pipe.tokenizers.items()}
        weights = {name: np.ones(each.shape, np.float32) for name, each in ids.items()}
        texts.append(to_text(params, ids, weights, np.int32(0), {}))
    text = jax.tree.map(lambda *each: jnp.concatenate(each), *texts)
    return Lessons(jnp.concatenate(latents), text.prompt_embeds, text.pooled)


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


def loss(
    model: Model, alphas: Array, network: Any, lessons: Lessons, factors: Factors, batch: int, key: Array
) -> Array:
    """Return the weighted error of the predicted noise, for a random batch.

    It is weighed as the error of the velocity would be (Salimans and Ho 2022, arXiv:2202.00512, section 4), which is
    large where there is most noise: the board's colour is decided there. Nearly clean latents count less, as in min-SNR
    (Hang et al. 2023, arXiv:2303.09556).
    """
    of_rows, of_times, of_noise, of_empty = jax.random.split(key, 4)
    rows = jax.random.randint(of_rows, (batch,), 0, len(lessons.latents))
    texts = jnp.where(jax.random.uniform(of_empty, (batch,)) < EMPTY_SHARE, len(lessons.pooled) - 1, rows)
    timesteps = jax.random.randint(of_times, (batch,), 0, len(alphas))
    alpha = alphas[timesteps][:, None, None, None]
    noise = jax.random.normal(of_noise, (batch, *lessons.latents.shape[1:]))
    mix = jnp.sqrt(alpha) * lessons.latents[rows] + jnp.sqrt(1 - alpha) * noise
    network = adapted(network, unflatten(factors))
    context = unet_context(network, lessons.prompt_embeds[texts])
    predicted, _ = unet(
        network,
        model.unet,
        mix,
        timesteps.astype(jnp.float32),
        context,
        lessons.pooled[texts],
        jnp.tile(TIME_IDS, (batch, 1)),
        kernels=model.kernels,
    )
    snr = alpha / (1 - alpha)
    weight = jnp.minimum(1.0, MAX_SNR / snr) / alpha
    return jnp.mean(jnp.square(predicted - noise) * weight)


def train(
    pipe: jaxl.Pipeline, params: Any, lessons: Lessons, *, rank: int, steps: int, batch: int, rate: float, seed: int
) -> Factors:
    """Return factors that Adam trained (Kingma and Ba 2015, arXiv:1412.6980); the rate falls along half a cosine."""
    start, key = jax.random.split(jax.random.key(seed))
    alphas = jnp.asarray(pipe.model.scheduler.noise.alphas_cumprod(np.float32))
    network = without_winograd(params["unet"])  # plain convolutions are quicker where there are gradients
    values, as_factors = ravel_pytree(new_factors(network, rank, start))

    @jax.jit
    def run(state: State, step: Array, network: Any, lessons: Lessons) -> tuple[State, Array]:
        def of_values(values: Array) -> Array:
            own = jax.random.fold_in(key, step.astype(jnp.int32))
            return loss(pipe.model, alphas, network, lessons, as_factors(values), batch, own)

        error, gradient = jax.value_and_grad(of_values)(state.values)
        mean = 0.9 * state.mean + 0.1 * gradient
        square = 0.99 * state.square + 0.01 * gradient**2
        now = rate * 0.5 * (1 + jnp.cos(jnp.pi * (step - 1) / steps))
        values = state.values - now * (mean / (1 - 0.9**step)) / (jnp.sqrt(square / (1 - 0.99**step)) + 1e-8)
        return State(values, mean, square), error

    state = State(values, jnp.zeros_like(values), jnp.zeros_like(values))
    # where the network is, or the first step would be compiled for another place than the second
    state = jax.device_put(state, network["conv_in"]["bias"].sharding)
    began, errors = time.time(), []
    for step in range(1, steps + 1):
        state, error = run(state, np.float32(step), network, lessons)
        errors.append(float(error))
        if step % REPORT_EVERY == 0 or step == steps:
            print(f"{time.time() - began:.0f} s: step {step} loss {np.mean(errors[-REPORT_EVERY:]):.4f}", flush=True)
    return as_factors(state.values)


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
    factors = train(
        pipe, params, lessons, rank=args.rank, steps=args.steps, batch=args.batch, rate=args.lr, seed=args.seed
    )
    save(args.out, factors, params["unet"])
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
