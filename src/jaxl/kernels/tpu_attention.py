"""Attention for TPUs, in Pallas: the scores of some queries with all keys stay on the chip (arXiv:2205.14135).

All keys of a head fit there, so the softmax needs no second pass. Heads are read where the linear layers left them,
side by side in [B, T, N*D]: a program takes as many as fill the unit's 128 columns and tells them apart by masks, so
nothing is transposed and nothing is padded in memory.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxl.kernels.by_image import by_image

LANES = 128
# The most scores of a head to hold at a time, float32, and the most queries, to keep the program short.
SCORES = 2**20
MAX_QUERIES = 256
# Keys and values are held twice, as the next ones arrive meanwhile; a TPU v4 has 16 MiB for everything.
MAX_KEY_BYTES = 2**22


def takes(q: Array, k: Array, heads: int) -> bool:
    """Return whether the kernel takes queries [B, T, N*D] and keys [B, S, N*D]: any T and B, an S that fits the chip.

    The head size must be a divisor or multiple of 128, and the width at least that.
    """
    width, size = q.shape[-1], q.shape[-1] // heads
    fits = 2 * k.shape[1] * max(size, LANES) * k.dtype.itemsize <= MAX_KEY_BYTES
    return (
        fits and width >= LANES and (LANES % size == 0 or size % LANES == 0) and q.dtype in (jnp.bfloat16, jnp.float32)
    )


def occupied(size: int) -> int:
    """Return how many columns of the unit `size` channels or keys occupy; cost estimates count these."""
    return -(-size // LANES) * LANES


def tpu_attention(
    q: Array, k: Array, v: Array, heads: int, *, lengths: Array | None = None, interpret: bool = False
) -> Array:
    """q [B, T, N*D], k and v [B, S, N*D] -> [B, T, N*D], softmax in float32. `lengths` as in `attention`."""
    run = partial(_attention, heads=heads, interpret=interpret)
    return by_image(run, (q, k, v) if lengths is None else (q, k, v, lengths))


def _attention(q: Array, k: Array, v: Array, *lengths: Array, heads: int, interpret: bool) -> Array:
    b, t, width = q.shape
    keys, size = k.shape[1], width // heads
    lanes = max(size, LANES)
    rows = min(t, MAX_QUERIES, SCORES // keys)
    some = pl.BlockSpec((1, rows, lanes), lambda image, head, part, *_: (image, part, head))
    every = pl.BlockSpec((1, keys, lanes), lambda image, head, part, *_: (image, 0, head))
    return pl.pallas_call(
        partial(_kernel, size=size, filled=width % lanes),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(lengths),
            grid=(b, pl.cdiv(width, lanes), pl.cdiv(t, rows)),
            in_specs=[some, every, every],
            out_specs=some,
        ),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        cost_estimate=pl.CostEstimate(
            flops=4 * b * t * occupied(keys) * heads * lanes,
            bytes_accessed=(2 * q.size + k.size + v.size) * q.dtype.itemsize,
            transcendentals=b * t * keys * heads,
        ),
        interpret=interpret,
        name="attention",
    )(*lengths, q, k, v)


def _kernel(*refs, size: int, filled: int) -> None:
    """Attend with the heads of one block of columns, of the last of which `filled` are real, or all if that is 0."""
    *lengths, q_ref, k_ref, v_ref, out_ref = refs
    q, k, v = q_ref[0], k_ref[0], v_ref[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, q.shape, 1)
    last = pl.program_id(1) == pl.num_programs(1) - 1
    if filled:  # what is beyond them may be NaN, which zeros of another head's query do not cancel
        beyond = last & (jax.lax.broadcasted_iota(jnp.int32, k.shape, 1) >= filled)
        k = jnp.where(beyond, jnp.zeros_like(k), k)

    def attend(first: int) -> None:
        own = (lane >= first) & (lane < first + size)
        # the other heads' zeros cost nothing: a narrower product would leave those columns idle
        scores = _product(jnp.where(own, q, jnp.zeros_like(q)), k, 1) * size**-0.5
        if lengths:
            key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            scores = jnp.where(key < lengths[0][pl.program_id(0)], scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        of_head = (_product(weights.astype(v.dtype), v, 0) / weights.sum(-1, keepdims=True)).astype(out_ref.dtype)
        out_ref[0] = jnp.where(own, of_head, out_ref[0]) if first else of_head

    for first in range(0, q.shape[1], size):
        if filled and first >= filled:
            pl.when(~last)(partial(attend, first))
        else:
            attend(first)


def _product(a: Array, b: Array, axis: int) -> Array:
    """[M, K] with [K, N] (`axis` 0) or [N, K] (`axis` 1) -> [M, N] float32."""
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)
