"""`kernels.upsampled_conv` for TPUs, in Pallas. The sums of the filter are rounded to its dtype, as the pixels are."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxl.kernels.by_image import by_image
from jaxl.kernels.tpu_attention import occupied
from jaxl.kernels.tpu_conv import (
    CHIP_BYTES,
    OUTPUTS,
    TILE_ROWS,
    beside_read,
    lines_read,
    rows_beside,
    rows_of,
    write_lines,
)
from jaxl.kernels.upsampled_conv import TAPS


def takes(x: Array | jax.ShapeDtypeStruct, weight: Array | jax.ShapeDtypeStruct) -> bool:
    """Return whether `conv` takes pictures [B, H, W, I] and a weight [3, 3, I, O]: in bfloat16, O a multiple of 64."""
    fits = x.dtype == weight.dtype == jnp.bfloat16 and x.shape[2] % TILE_ROWS[jnp.dtype(x.dtype)] == 0
    return fits and weight.shape[:2] == (3, 3) and weight.shape[-1] % 64 == 0 and _outputs(x, weight) is not None


def conv(x: Array, weight: Array, bias: Array, *, interpret: bool = False) -> Array:
    """[B, H, W, I] -> [B, 2H, 2W, O]: each pixel four times, padded, convolved by [3, 3, I, O], plus bias."""
    images = (x, *rows_beside([x]))
    return by_image(partial(_conv, interpret=interpret), images, (weight, bias.astype(jnp.float32)[None]))


def _outputs(x: Array | jax.ShapeDtypeStruct, weight: Array | jax.ShapeDtypeStruct) -> int | None:
    """Return the number of output channels that a program works on, the most that fits the chip; None if none does."""
    _, height, width, inputs = x.shape
    channels, rows = weight.shape[-1], rows_of(height, width)
    for outputs in [each for each in OUTPUTS if channels % each == 0] or [channels]:
        # weights, pictures and results are held twice, sums of weights once; those of four pixels are float32
        pictures, results = (rows + 2) * width * 10 * inputs, rows * width * 48 * outputs
        if 68 * inputs * outputs + pictures + results <= CHIP_BYTES * 3 // 4:
            return outputs
    return None


def _conv(x: Array, *more: Array, interpret: bool) -> Array:
    *beside, weight, bias = more
    b, height, width, inputs = x.shape
    rows, outputs, channels = rows_of(height, width), _outputs(x, weight), weight.shape[-1]
    assert outputs is not None

    doubled = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((b, height, 2, 2 * width, channels), x.dtype),
        grid=(channels // outputs, b, height // rows),
        in_specs=[
            *lines_read(x.shape),
            *(beside_read(each.shape) for each in beside),
            pl.BlockSpec((3, 3, inputs, outputs), lambda out, image, part: (0, 0, 0, out)),
            pl.BlockSpec((1, outputs), lambda out, image, part: (0, out)),
        ],
        out_specs=pl.BlockSpec((1, rows, 2, 2 * width, outputs), lambda out, image, part: (image, part, 0, 0, out)),
        scratch_shapes=[
            tpu.VMEM(((rows + 2) * width, inputs), x.dtype),
            tpu.VMEM((2, 2, 2, 2, inputs, outputs), weight.dtype),
        ],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=CHIP_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * 16 * b * height * width * occupied(inputs) * occupied(channels),
            bytes_accessed=x.dtype.itemsize * (x.size + weight.size + 4 * b * height * width * channels),
            transcendentals=0,
        ),
        interpret=interpret,
        name="conv_upsampled",
    )(x, x, x, *beside, weight, bias)
    return doubled.reshape(b, 2 * height, 2 * width, channels)


def _kernel(above, own, below, *more) -> None:
    *beside, weight, bias, out, lines, sums = more
    _, rows, width, _ = own.shape

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        _add_up(weight, sums)

    pixels = rows * width
    write_lines(lines, above, own, below, beside[0] if beside else None, lambda x: x, lambda x: x)
    at = jax.lax.broadcasted_iota(jnp.int32, (rows, width, bias.shape[-1]), 1).reshape(pixels, bias.shape[-1])

    def summed(down: int, right: int, column: int) -> Array:
        """Return the sum over a column of the filter of a pixel, [pixels, O], before it is shifted to its place."""
        first, second = (
            jax.lax.dot_general(
                lines[(down + i) * width : (down + i) * width + pixels],
                sums[down, i, right, column],
                (((1,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            for i in range(2)
        )
        return first + second

    for down in range(2):
        left = jnp.where(at == 0, 0.0, tpu.roll(summed(down, 0, 0), 1, 0)) + summed(down, 0, 1)
        right = summed(down, 1, 0) + jnp.where(at == width - 1, 0.0, tpu.roll(summed(down, 1, 1), pixels - 1, 0))
        row = _in_turns(left + bias[...], right + bias[...], out.dtype)
        out[0, :, down] = row.reshape(rows, 2 * width, bias.shape[-1])


def _add_up(weight, sums) -> None:
    """Write the sums of a filter [3, 3, I, O] that each pixel needs, [2, 2, 2, 2, I, O]; a part of I at a time."""
    inputs = weight.shape[2]
    size = math.gcd(inputs, 128)

    def add_up(i: Array, _: None) -> None:
        own = pl.ds(pl.multiple_of(i * size, size), size)
        for down, at, right, column in product(range(2), repeat=4):
            taps = product(TAPS[down][at], TAPS[right][column])
            total = sum(weight[*tap, own].astype(jnp.float32) for tap in taps)
            sums[down, at, right, column, own] = jnp.asarray(total).astype(sums.dtype)

    jax.lax.fori_loop(0, inputs // size, add_up, None)


def _in_turns(even: Array, odd: Array, dtype: jnp.dtype) -> Array:
    """[N, O] float32 each -> [2N, O] bfloat16. Two rows of these are the halves of one of four bytes."""
    low, high = (
        jax.lax.bitcast_convert_type(each.astype(dtype).astype(jnp.float32), jnp.uint32) for each in (even, odd)
    )
    return tpu.bitcast(high | (low >> 16), dtype)
