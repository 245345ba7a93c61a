"""What a small network learns from that is trained beside `tiny`: scenes that `tiny` draws, and noise on them.

Needs jaxl, whose networks it runs, and no PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxl
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxl.run.steps import encode_image, encode_text
from PIL import Image

from captions import full_caption
from scenes import SIZE, Scene, SceneSampler, load_concepts

CONCEPTS = load_concepts()
HELD_OUT = 8  # every eighth thing is not drawn, to see afterwards what becomes of new ones
FIRST_SEED, DRAWN_AT_ONCE = 1000, 8
EMPTY_SHARE = 0.2  # of samples trained with the empty caption, which guidance compares with
MAX_SNR = 5.0
REPORT_EVERY = 50
TIME_IDS = np.array((SIZE, SIZE, 0, 0, SIZE, SIZE), np.float32)


class Lessons(NamedTuple):
    """What is to be drawn: latents [N, h, w, 4], prompt_embeds [N, T, D] and pooled [N, P]."""

    latents: Array
    prompt_embeds: Array
    pooled: Array


class Noisy(NamedTuple):
    """A batch with noise: of which lessons it is, the latents, their timesteps, the texts, and what is to be told."""

    rows: Array
    latents: Array
    timesteps: Array
    prompt_embeds: Array
    pooled: Array
    noise: Array
    weight: Array

    @property
    def time_ids(self) -> Array:
        return jnp.tile(TIME_IDS, (len(self.rows), 1))

    def error(self, predicted: Array) -> Array:
        """Return the weighted error of the predicted noise."""
        return jnp.mean(jnp.square(predicted - self.noise) * self.weight)


class State(NamedTuple):
    """Trained values in one row, and the moments of their gradients."""

    values: Array
    mean: Array
    square: Array


def whole_scenes(count: int, seed: int, *, held_out: bool = False) -> list[Scene]:
    """Return random scenes that are not cut or enlarged: without held-out things, or of nothing else."""
    sampler = SceneSampler(CONCEPTS, seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = sampler.draw()
        shown = all((item.concept % HELD_OUT == 0) == held_out for item in scene.items)
        if scene.time_ids == tuple(TIME_IDS) and shown:
            found.append(scene)
    return found


def draw(
    pipe: jaxl.Pipeline, params: Any, scenes: Sequence[Scene], *, seed: int = FIRST_SEED, **options: Any
) -> list[Image.Image]:
    """Return a picture of each scene, by the caption that leaves nothing out."""
    captions = [full_caption(scene, CONCEPTS) for scene in scenes]
    pictures: list[Image.Image] = []
    for first in range(0, len(captions), DRAWN_AT_ONCE):
        some = captions[first : first + DRAWN_AT_ONCE]
        own = {name: values[first : first + DRAWN_AT_ONCE] for name, values in options.items()}
        pictures += pipe.generate(params, some, seed=seed + first, steps=10, scheduler="dpm++2m_karras", **own).images
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


def uniform(key: Array, shape: tuple[int, ...], count: int) -> Array:
    """Return random timesteps, each as often as any other."""
    return jax.random.randint(key, shape, 0, count)


def cubic(key: Array, shape: tuple[int, ...], count: int) -> Array:
    """Return random timesteps, more often those with much noise, in which shapes are decided.

    Mou et al. 2023, T2I-Adapter, arXiv:2302.08453, section 3.4.
    """
    return jnp.floor((1 - jax.random.uniform(key, shape) ** 3) * count).astype(jnp.int32).clip(0, count - 1)


def noisy(
    alphas: Array,
    lessons: Lessons,
    batch: int,
    key: Array,
    *,
    empty_share: float = EMPTY_SHARE,
    timesteps: Callable[..., Array] = uniform,
) -> Noisy:
    """Return a random batch of lessons with noise, a share of them with the empty caption.

    The error is weighed as the error of the velocity would be (Salimans and Ho 2022, arXiv:2202.00512, section 4),
    which is large where there is most noise: colours and places are decided there. Nearly clean latents count less, as
    in min-SNR (Hang et al. 2023, arXiv:2303.09556).
    """
    of_rows, of_times, of_noise, of_empty = jax.random.split(key, 4)
    rows = jax.random.randint(of_rows, (batch,), 0, len(lessons.latents))
    texts = jnp.where(jax.random.uniform(of_empty, (batch,)) < empty_share, len(lessons.pooled) - 1, rows)
    times = timesteps(of_times, (batch,), len(alphas))
    alpha = alphas[times][:, None, None, None]
    noise = jax.random.normal(of_noise, (batch, *lessons.latents.shape[1:]))
    snr = alpha / (1 - alpha)
    return Noisy(
        rows=rows,
        latents=jnp.sqrt(alpha) * lessons.latents[rows] + jnp.sqrt(1 - alpha) * noise,
        timesteps=times.astype(jnp.float32),
        prompt_embeds=lessons.prompt_embeds[texts],
        pooled=lessons.pooled[texts],
        noise=noise,
        weight=jnp.minimum(1.0, MAX_SNR / snr) / alpha,
    )


def train(
    start: Any,
    loss: Callable[..., Array],
    fixed: Any,
    *,
    steps: int,
    rate: float,
    key: Array,
    warm_up: int = 0,
    shares: Any = None,
    seen: Callable[[Any], None] | None = None,
) -> Any:
    """Return the tree of values that Adam makes of `start` (Kingma and Ba 2015, arXiv:1412.6980).

    `loss` is a function of the tree, of `fixed` and of a key. The rate rises for `warm_up` steps, and falls along half
    a cosine; of it each leaf has its share in `shares`, if given. `seen` is called with the tree now and then.
    """
    values, as_tree = ravel_pytree(start)
    shares = jax.tree.map(lambda leaf: 1.0, start) if shares is None else shares
    rates = rate * ravel_pytree(jax.tree.map(jnp.full_like, start, shares))[0]

    @jax.jit
    def run(state: State, step: Array, fixed: Any) -> tuple[State, Array]:
        def of_values(values: Array) -> Array:
            return loss(as_tree(values), fixed, jax.random.fold_in(key, step.astype(jnp.int32)))

        error, gradient = jax.value_and_grad(of_values)(state.values)
        mean = 0.9 * state.mean + 0.1 * gradient
        square = 0.99 * state.square + 0.01 * gradient**2
        now = rates * 0.5 * (1 + jnp.cos(jnp.pi * (step - 1) / steps)) * jnp.minimum(1.0, step / (warm_up + 1))
        values = state.values - now * (mean / (1 - 0.9**step)) / (jnp.sqrt(square / (1 - 0.99**step)) + 1e-8)
        return State(values, mean, square), error

    state = State(values, jnp.zeros_like(values), jnp.zeros_like(values))
    # where the network is, or the first step would be compiled for another place than the second
    state = jax.device_put(state, jax.tree.leaves(fixed)[0].sharding)
    began, errors = time.time(), []
    for step in range(1, steps + 1):
        state, error = run(state, np.float32(step), fixed)
        errors.append(float(error))
        if step % REPORT_EVERY == 0 or step == steps:
            print(f"{time.time() - began:.0f} s: step {step} loss {np.mean(errors[-REPORT_EVERY:]):.4f}", flush=True)
            if seen is not None:
                seen(as_tree(state.values))
    return as_tree(state.values)
