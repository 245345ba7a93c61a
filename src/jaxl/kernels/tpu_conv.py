"""Normalised 3x3 convolutions for TPUs, in Pallas.

XLA's convolution of few images rearranges pictures to make a larger batch of them, which costs more than the
convolution where pictures are large. This one reads rows of pixels as they are: nine products, of which those for the
columns to the left and to the right are added one pixel further. Normalisation and SiLU come before, on the chip, and
so does rounding where the weight is int8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxl.kernels import by_rows
from jaxl.kernels.by_image import by_image
from jaxl.kernels.tpu_attention import LANES, occupied

# The most pixels that a program works on, and its numbers of output channels.
PIXELS = 256
OUTPUTS = (256, 128)
# Pixels of a row lie in tiles of this many.
TILE_ROWS = {jnp.dtype(jnp.int8): 32, jnp.dtype(jnp.bfloat16): 16, jnp.dtype(jnp.float32): 8}
# A program's share of the 128 MiB of a TPU v5e or v6e; XLA keeps activations in the rest.
CHIP_BYTES = 40 * 2**20
MOMENTS_PIXELS = 1024
# The unit does twice as many operations in int8 as in bfloat16, in which estimates count them.
INT8_GAIN = 2
INT8_MAX = 127.0


def takes(x: Array | jax.ShapeDtypeStruct, weight: Array | jax.ShapeDtypeStruct) -> bool:
    """Return whether `conv` takes pictures [B, H, W, I] and a weight [3, 3, I, O], O a multiple of 64.

    Their channels may be in two parts, of which x is one.
    """
    if x.dtype not in (jnp.bfloat16, jnp.float32) or weight.dtype not in (jnp.int8, x.dtype):
        return False
    if x.shape[2] % TILE_ROWS[jnp.dtype(weight.dtype)] or weight.shape[:2] != (3, 3) or weight.shape[-1] % 64:
        return False
    return _outputs(x, weight) is not None


def conv(
    x: Array,
    weight: Array,
    bias: Array,
    norm: tuple[Array, Array] | None = None,
    residual: Array | None = None,
    *,
    skip: Array | None = None,
    scales: tuple[Array, Array] | None = None,
    interpret: bool = False,
) -> Array:
    """[B, H, W, I] -> [B, H, W, O]: silu(x * scale + shift), padded with zeros, convolved, plus bias and residual.

    weight: [3, 3, I, O]; bias: [O]; `norm`: scale and shift, float32 [B, I], else x is taken as it is; residual:
    [B, H, W, O]. A `skip` stands behind x on the channel axis, and is joined to it on the chip, where x fills whole
    columns of the unit. An int8 weight has `scales`, of the input, float32 [], and of the weight, float32 [O], as in
    `nn.quantised`; here rounding is by multiplication with 1 / scale.
    """
    parts = [x] if skip is None else [x, skip]
    if x.shape[-1] % LANES:
        parts = [jnp.concatenate(parts, axis=-1)]
    beside = rows_beside(parts, norm)
    by_channel = [] if norm is None else [a[:, None] for a in norm]
    images = (*parts, *beside, *by_channel, *([] if residual is None else [residual]))
    run = partial(_conv, parts=len(parts), beside=bool(beside), normed=norm is not None, interpret=interpret)
    step = () if scales is None else ((1 / scales[0]).reshape(1), (scales[0] * scales[1])[None])
    return by_image(run, images, (*step, weight, bias.astype(jnp.float32)[None]))


def rows_of(height: int, width: int) -> int:
    """Return the number of rows that a program works on: a divisor of the height."""
    return max(rows for rows in range(1, height + 1) if height % rows == 0 and (rows == 1 or rows * width <= PIXELS))


def rows_beside(parts: Sequence[Array], norm: tuple[Array, Array] | None = None) -> list[Array]:
    """Return the rows above and below pictures [B, H, W, C], [B, 2, W, C] each, normalised; none unless rows are split.

    See `kernels.by_rows`.
    """
    if by_rows.devices() == 1:
        return []
    made, first = [], 0
    for part in parts:
        own, edges = slice(first, first := first + part.shape[-1]), jnp.concatenate([part[:, :1], part[:, -1:]], axis=1)
        if norm is not None:
            edges = normalised(edges, *(a[:, None, None, own] for a in norm))
        made.append(by_rows.beside(edges[:, 0], edges[:, -1]))
    return made


def normalised(x: Array, scale: Array, shift: Array) -> Array:
    """Return silu(x * scale + shift)."""
    f = x.astype(jnp.float32) * scale + shift
    return (f * jax.nn.sigmoid(f)).astype(x.dtype)


def lines_read(shape: tuple[int, ...]) -> list[pl.BlockSpec]:
    """Return what programs (output channels, image, part of the rows) read of pictures [B, H, W, C].

    Those are the row just above their own rows, these, and the row just below; any row where there is none.
    """
    _, height, width, channels = shape
    rows = rows_of(height, width)

    def line(row: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, 1, width, channels), lambda out, image, part: (image, jnp.clip(part * rows + row, 0, height - 1), 0, 0)
        )

    own = pl.BlockSpec((1, rows, width, channels), lambda out, image, part: (image, part, 0, 0))
    return [line(-1), own, line(rows)]


def beside_read(shape: tuple[int, ...]) -> pl.BlockSpec:
    """Return what programs read of `rows_beside` pictures [B, H, W, C]: both."""
    _, _, width, channels = shape
    return pl.BlockSpec((1, 2, width, channels), lambda out, image, part: (image, 0, 0, 0))


def write_lines(
    lines, above, own, below, beside, made: Callable[[Array], Array], ready: Callable[[Array], Array]
) -> None:
    """Write what is `made` of what `lines_read` has, [(rows + 2) * W, C], and is `ready` of the rows `beside` it.

    Where there are none, zeros.
    """
    _, rows, width, channels = own.shape
    pixels, part = rows * width, pl.program_id(2)
    nothing = jnp.zeros((), lines.dtype)
    upper, lower = (nothing, nothing) if beside is None else (ready(beside[0, 0]), ready(beside[0, 1]))
    lines[:width] = jnp.where(part > 0, made(above[0, 0]), upper)
    lines[width : width + pixels] = made(own[0].reshape(pixels, channels))
    lines[width + pixels :] = jnp.where(part < pl.num_programs(2) - 1, made(below[0, 0]), lower)


def _outputs(x: Array | jax.ShapeDtypeStruct, weight: Array | jax.ShapeDtypeStruct) -> int | None:
    """Return the number of output channels that a program works on, the most that fits the chip; None if none does."""
    _, height, width, _ = x.shape
    inputs, channels, size = *weight.shape[2:], x.dtype.itemsize
    rows = rows_of(height, width)
    for outputs in [each for each in OUTPUTS if channels % each == 0] or [channels]:
        # weights, pictures and results are held twice; sums are float32
        pictures, results = (rows + 2) * width * 5 * inputs * size, rows * width * 8 * outputs * 4
        if 2 * weight.dtype.itemsize * 9 * inputs * outputs + pictures + results <= CHIP_BYTES * 3 // 4:
            return outputs
    return None


def _conv(*images: Array, parts: int, beside: bool, normed: bool, interpret: bool) -> Array:
    pictures, edges, (*more, weight, bias) = (
        images[:parts],
        images[parts : parts * (1 + beside)],
        images[parts * (1 + beside) :],
    )
    rounds = weight.dtype == jnp.int8
    x, inputs, channels = pictures[0], *weight.shape[2:]
    b, height, width, _ = x.shape
    rows, outputs = rows_of(height, width), _outputs(x, weight)
    assert outputs is not None

    result = pl.BlockSpec((1, rows, width, outputs), lambda out, image, part: (image, part, 0, out))
    by_input = pl.BlockSpec((1, 1, inputs), lambda out, image, part: (image, 0, 0))
    by_output = pl.BlockSpec((1, outputs), lambda out, image, part: (0, out))
    scales = [pl.BlockSpec(memory_space=tpu.SMEM), by_output] if rounds else []
    residual = [result] * (len(more) - 2 * normed - len(scales))
    weights = pl.BlockSpec((3, 3, inputs, outputs), lambda out, image, part: (0, 0, 0, out))
    result_shape = jax.ShapeDtypeStruct((b, height, width, channels), x.dtype)
    operations = 2 * 9 * b * height * width * occupied(inputs) * occupied(channels)
    read_and_written = sum(picture.size for picture in pictures) + result_shape.size
    return pl.pallas_call(
        partial(_conv_kernel, parts=parts, beside=beside, normed=normed, rounds=rounds),
        out_shape=result_shape,
        grid=(channels // outputs, b, height // rows),
        in_specs=[
            *(spec for picture in pictures for spec in lines_read(picture.shape)),
            *(beside_read(edge.shape) for edge in edges),
            *([by_input] * (2 * normed) + residual + scales),
            *(weights, by_output),
        ],
        out_specs=result,
        scratch_shapes=[tpu.VMEM(((rows + 2) * width, inputs), weight.dtype)],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=CHIP_BYTES),
        cost_estimate=pl.CostEstimate(
            flops=operations // INT8_GAIN if rounds else operations,
            bytes_accessed=weight.nbytes + x.dtype.itemsize * read_and_written,
            transcendentals=b * height * width * inputs,
        ),
        interpret=interpret,
        name="conv",
    )(*(picture for picture in pictures for _ in range(3)), *edges, *more, weight, bias)


def _conv_kernel(*refs, parts: int, beside: bool, normed: bool, rounds: bool) -> None:
    pictures, (*more, weight, bias, out, lines) = refs[: 3 * parts], refs[3 * parts :]
    edges, more = (more[:parts], more[parts:]) if beside else ([None] * parts, more)
    norm, more = (more[:2], more[2:]) if normed else ([], more)
    residual, scales = (more[:-2], more[-2:]) if rounds else (more, [])
    _, rows, width, _ = out.shape
    pixels = rows * width

    def made(x: Array, own: slice) -> Array:
        return ready(normalised(x, *(a[0, :, own] for a in norm)) if norm else x)

    def ready(x: Array) -> Array:
        if scales:
            x = jnp.clip(jnp.round(x.astype(jnp.float32) * scales[0][0]), -INT8_MAX, INT8_MAX)
        return x.astype(lines.dtype)

    first = 0
    for i in range(parts):
        above, own, below = pictures[3 * i : 3 * i + 3]
        channels = slice(first, first := first + own.shape[-1])
        write_lines(lines.at[:, channels], above, own, below, edges[i], partial(made, own=channels), ready)

    def of_column(column: int) -> Array:
        """Return the sum over one column of the filter, [pixels, O], before it is shifted to its place."""
        terms = [
            jax.lax.dot_general(
                lines[i * width : i * width + pixels],
                weight[i, column],
                (((1,), (0,)), ((), ())),
                preferred_element_type=jnp.int32 if scales else jnp.float32,
            )
            for i in range(3)
        ]
        return terms[0] + terms[1] + terms[2]

    total = of_column(1)
    at = jax.lax.broadcasted_iota(jnp.int32, (rows, width, total.shape[-1]), 1).reshape(total.shape)
    total += jnp.where(at == 0, 0, tpu.roll(of_column(0), 1, 0))
    total += jnp.where(at == width - 1, 0, tpu.roll(of_column(2), pixels - 1, 0))
    if scales:
        total = total.astype(jnp.float32) * scales[1][...]
    total = (total + bias[...]).reshape(out.shape[1:])
    if residual:
        total += residual[0][0].astype(jnp.float32)
    out[0] = total.astype(out.dtype)


def takes_moments(x: Array) -> bool:
    """Return whether `moments` takes pictures [B, H, W, C]: the pixels must divide into whole parts."""
    pixels = x.shape[1] * x.shape[2]
    return x.dtype in (jnp.float32, jnp.bfloat16) and pixels % min(pixels, MOMENTS_PIXELS) == 0 and pixels % 16 == 0


def moments(x: Array, *, interpret: bool = False) -> tuple[Array, Array]:
    """[B, H, W, C] -> mean and variance by channel, float32 [B, C] each; the pictures are read once."""
    b, height, width, c = x.shape
    pixels = height * width
    means, squares = by_image(partial(_moments, interpret=interpret), (x.reshape(b, pixels, c),))
    # equal parts are joined as in Chan, Golub & LeVeque 1983 (Am. Stat. 37, 242), which loses no digits
    mean = means.mean(1)
    return mean[:, 0], squares.sum((1, 2)) / pixels + jnp.square(means - mean[:, None]).mean((1, 2))


def _moments(x: Array, *, interpret: bool) -> tuple[Array, Array]:
    """[B, N, C] -> means and sums of squared differences from them, [B, K, 1, C] each, of K parts of the N pixels."""
    b, pixels, c = x.shape
    rows = min(pixels, MOMENTS_PIXELS)

    def kernel(x_ref, mean_ref, square_ref) -> None:
        part = x_ref[0].astype(jnp.float32)
        mean = part.sum(0, keepdims=True) / rows
        mean_ref[0, 0] = mean
        square_ref[0, 0] = jnp.square(part - mean).sum(0, keepdims=True)

    result = pl.BlockSpec((1, 1, 1, c), lambda image, part: (image, part, 0, 0))
    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((b, pixels // rows, 1, c), jnp.float32)] * 2,
        grid=(b, pixels // rows),
        in_specs=[pl.BlockSpec((1, rows, c), lambda image, part: (image, part, 0))],
        out_specs=[result] * 2,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",) * 2),
        cost_estimate=pl.CostEstimate(flops=4 * x.size, bytes_accessed=x.size * x.dtype.itemsize, transcendentals=0),
        interpret=interpret,
        name="moments",
    )(x)
