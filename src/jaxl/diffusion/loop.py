"""The one loop that samples: it runs rows of tables, whatever the schedulers behind them.

Everything here is per image. Images of one batch may have different schedulers, numbers of steps and seeds, and may be
at different rows.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxl.diffusion.noise import step_noise
from jaxl.diffusion.rows import COLUMNS, MIXED

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The images in the making: a pytree, every leaf with a leading axis of B images.

    `latents` and `saved` are float32 [B, H, W, C]; `history` float32 [B, 3, H, W, C], the latest first; `table` float32
    [B, R, K] (see `rows`); `row`, the next to run, and `end`, the first not to run, int32 [B]; `keys` uint32 [B, 2].
    In tables with `push_x` 0 and `push_d` 1, `history[:, 0]` is the last denoised estimate.
    """

    latents: jax.Array
    saved: jax.Array
    history: jax.Array
    table: jax.Array
    row: jax.Array
    end: jax.Array
    keys: jax.Array


def init_slots(rows: ArrayLike, end: ArrayLike, scale: ArrayLike, keys: ArrayLike, noise: ArrayLike) -> Slots:
    """Slots at row 0, from unit `noise` [B, H, W, C] and `keys` uint32 [B, 2]; may be traced.

    `rows` [B, R, K], `end` [B] and `scale` [B] are the `rows`, `used` and `init_scale` of each image's table.
    """
    noise = jnp.asarray(noise, jnp.float32)
    end = jnp.asarray(end, jnp.int32)
    return Slots(
        latents=noise * jnp.asarray(scale, jnp.float32)[:, None, None, None],
        saved=jnp.zeros_like(noise),
        history=jnp.zeros((noise.shape[0], 3, *noise.shape[1:]), jnp.float32),
        table=jnp.asarray(rows, jnp.float32),
        row=jnp.zeros_like(end),
        end=end,
        keys=jnp.asarray(keys, jnp.uint32),
    )


def advance(denoise: Denoise, slots: Slots, n: ArrayLike) -> Slots:
    """Run the next `n` rows (int32, may be traced) of every image; those at their end stay exactly as they are.

    `denoise(x, t)` is the network with its conditioning and guidance: x is float32 [B, H, W, C], scaled as the network
    wants it, t is float32 [B], and it returns the prediction [B, H, W, C]. It is also called for images that have
    ended; their prediction is dropped, so it may be anything, NaN included.
    """
    return lax.fori_loop(0, n, lambda _, state: _run_row(denoise, state), slots)


def _run_row(denoise: Denoise, slots: Slots) -> Slots:
    at = jnp.minimum(slots.row, slots.table.shape[1] - 1)
    row = jnp.take_along_axis(slots.table, at[:, None, None], axis=1)[:, 0]

    def column(name: str) -> jax.Array:
        return row[:, COLUMNS.index(name), None, None, None]

    x, history = slots.latents, slots.history
    prediction = denoise(column("c_in") * x, row[:, COLUMNS.index("t")]).astype(jnp.float32)
    denoised = column("c_skip") * x + column("c_out") * prediction
    noise = step_noise(slots.keys, slots.row, x.shape[1:])
    terms = dict(zip(MIXED, (x, slots.saved, denoised, *jnp.moveaxis(history, 1, 0), noise), strict=True))

    # sums of products rather than a matrix product, which a TPU would round to bfloat16
    def mix(target: str) -> jax.Array:
        return functools.reduce(operator.add, (column(f"{target}_{name}") * term for name, term in terms.items()))

    latest = column("push_x") * x + column("push_d") * denoised
    live = slots.row < slots.end

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return replace(
        slots,
        latents=keep(mix("x"), x),
        saved=keep(mix("saved"), slots.saved),
        history=keep(jnp.concatenate([latest[:, None], history[:, :2]], axis=1), history),
        row=slots.row + live.astype(jnp.int32),
    )
