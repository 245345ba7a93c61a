"""The one loop that samples: it runs rows of tables, whatever the schedulers behind them.

Everything here is per image. Images of one batch may have different schedulers, numbers of steps and seeds, and may be
at different rows.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxl.diffusion.noise import step_noise
from jaxl.diffusion.rows import COLUMNS, MIXED

Row = Mapping[str, jax.Array]  # a column's name -> its values, float32 [B]; `number`, int32 [B], is which row it is
Features = Any  # a pytree, every leaf with a leading axis of B images, or None
Denoise = Callable[[jax.Array, Row, Features], tuple[jax.Array, jax.Array, Features]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The images in the making: a pytree, every leaf with a leading axis of B images.

    `latents` and `saved` are float32 [B, H, W, C]; `history` float32 [B, 3, H, W, C], the latest first; `table` float32
    [B, R, K] (see `rows`); `row`, the next to run, and `end`, the first not to run, int32 [B]; `keys` uint32 [B, 2].
    `denoised` [B, H, W, C] is the last estimate of the result, zeros at first. `picture` and `noise` [B, H, W, C] are
    what the latents started from, and `mask` [B, H, W, 1] is 1 where they are free, 0 where they keep to the picture.
    `features` is what the network keeps from row to row; the loop hands it on.
    """

    latents: jax.Array
    denoised: jax.Array
    saved: jax.Array
    history: jax.Array
    table: jax.Array
    row: jax.Array
    end: jax.Array
    keys: jax.Array
    picture: jax.Array
    noise: jax.Array
    mask: jax.Array
    features: Features = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GivenNoise:
    """Noise of the next rows of B images in place of their own, as other programs draw it.

    `noise` float32 [B, N, H, W, C] is that of the next N rows, where it `has` bool [B] any.
    """

    noise: jax.Array | np.ndarray
    has: jax.Array | np.ndarray


def init_slots(
    rows: ArrayLike,
    end: ArrayLike,
    keys: ArrayLike,
    noise: ArrayLike,
    noise_scale: ArrayLike,
    picture: ArrayLike | None = None,
    picture_scale: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
) -> Slots:
    """Slots at row 0, with latents `picture_scale * picture + noise_scale * noise`; may be traced.

    `rows` [B, R, K] and `end` [B] are the `rows` and `used` of each image's table; `keys` uint32 [B, 2]; `noise`, of
    unit variance, and `picture` [B, H, W, C]; the scales [B] or single numbers; `mask` as in `Slots`, by default 1.
    """
    noise = jnp.asarray(noise, jnp.float32)
    end = jnp.asarray(end, jnp.int32)
    picture = jnp.zeros_like(noise) if picture is None else jnp.asarray(picture, jnp.float32)

    def per_image(scale: ArrayLike) -> jax.Array:
        return jnp.asarray(scale, jnp.float32).reshape(-1, 1, 1, 1)

    return Slots(
        latents=per_image(picture_scale) * picture + per_image(noise_scale) * noise,
        denoised=jnp.zeros_like(noise),
        saved=jnp.zeros_like(noise),
        history=jnp.zeros((noise.shape[0], 3, *noise.shape[1:]), jnp.float32),
        table=jnp.asarray(rows, jnp.float32),
        row=jnp.zeros_like(end),
        end=end,
        keys=jnp.asarray(keys, jnp.uint32),
        picture=picture,
        noise=noise,
        mask=jnp.ones((*noise.shape[:3], 1), jnp.float32) if mask is None else jnp.asarray(mask, jnp.float32),
    )


def advance(denoise: Denoise, slots: Slots, n: ArrayLike, given: GivenNoise | None = None) -> Slots:
    """Run the next `n` rows (int32, may be traced) of every image; those at their end stay exactly as they are.

    Images draw each row's noise from their keys, or have it `given`, for n rows at least.

    `denoise(x, row, features)` is the network with its conditioning and guidance: x is float32 [B, H, W, C], scaled as
    the network wants it, `row["t"]` float32 [B] the timesteps, and it returns the predictions [B, H, W, C] with
    guidance and without, and the features for the next row, in the form of those it got. It is also called for images
    that have ended, as shallow ones of row -1; their prediction is dropped, so it may be anything, NaN included.
    """
    return lax.fori_loop(0, n, lambda i, state: run_row(denoise, state, given, i), slots)


def run_row(denoise: Denoise, slots: Slots, given: GivenNoise | None = None, place: ArrayLike = 0) -> Slots:
    """Run the next row of every image, as `advance` does; of noise that is `given`, it takes that at `place`."""
    at = jnp.minimum(slots.row, slots.table.shape[1] - 1)
    values = jnp.take_along_axis(slots.table, at[:, None, None], axis=1)[:, 0]
    row = {name: values[:, i] for i, name in enumerate(COLUMNS)}

    def column(name: str) -> jax.Array:
        return row[name][:, None, None, None]

    x, history, live = slots.latents, slots.history, slots.row < slots.end
    # so that an image that has ended does not make the others wait for what is deep
    row["shallow"] = jnp.where(live, row["shallow"], 1.0)
    row["number"] = jnp.where(live, slots.row, -1)
    *predictions, features = denoise(column("c_in") * x, row, slots.features)
    denoised, unguided = (column("c_skip") * x + column("c_out") * each.astype(jnp.float32) for each in predictions)
    noise = step_noise(slots.keys, slots.row, x.shape[1:])
    if given is not None:
        others = lax.dynamic_index_in_dim(jnp.asarray(given.noise), place, axis=1, keepdims=False)
        noise = jnp.where(jnp.asarray(given.has)[:, None, None, None], others, noise)
    terms = dict(zip(MIXED, (x, slots.saved, denoised, *jnp.moveaxis(history, 1, 0), noise), strict=True))

    # sums of products rather than a matrix product, which a TPU would round to bfloat16
    def mix(target: str) -> jax.Array:
        return functools.reduce(operator.add, (column(f"{target}_{name}") * term for name, term in terms.items()))

    known = column("known_image") * slots.picture + column("known_noise") * slots.noise
    latest = column("push_x") * x + column("push_d") * denoised + column("push_u") * unguided
    pushes = live & ((row["push_x"] != 0) | (row["push_d"] != 0) | (row["push_u"] != 0))

    def keep(new: jax.Array, old: jax.Array, where: jax.Array = live) -> jax.Array:
        return jnp.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return replace(
        slots,
        latents=keep(slots.mask * (mix("x") + column("x_u") * unguided) + (1 - slots.mask) * known, x),
        denoised=keep(denoised, slots.denoised),
        saved=keep(mix("saved"), slots.saved),
        history=keep(jnp.concatenate([latest[:, None], history[:, :2]], axis=1), history, pushes),
        row=slots.row + live.astype(jnp.int32),
        features=features,
    )
