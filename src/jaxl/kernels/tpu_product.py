"""Products in int8 for TPUs, in Pallas, with the layer norm and rounding before them and what follows them.

XLA writes rounded inputs to memory and reads them again, makes the sums of the norms that follow in passes of their
own, and loses half of the gain of int8 where it scales what the products give. Here rows of tokens are normalised and
rounded on the chip, and results leave it once, scaled, gated and with the residual added.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxl.kernels.by_image import by_image
from jaxl.kernels.tpu_attention import LANES
from jaxl.kernels.tpu_conv import CHIP_BYTES, INT8_GAIN, INT8_MAX

# The rows and the most output channels that a program works on. Parts of vectors begin at multiples of a tile.
ROWS = 256
OUTPUTS = 1280
TILE = 256


def takes(x: Array | jax.ShapeDtypeStruct, weight: Array | jax.ShapeDtypeStruct, halves: int = 1) -> bool:
    """Return whether `product` takes tokens [M, K] and an int8 weight [K, N], of whole columns of the unit.

    With a gate, N has two `halves`.
    """
    if x.ndim != 2 or weight.dtype != jnp.int8 or x.dtype not in (jnp.bfloat16, jnp.float32):
        return False
    inputs, outputs = weight.shape
    # weights, rows and results are held twice; sums are of four bytes
    held = 4 * inputs * min(outputs, OUTPUTS) + 2 * ROWS * (inputs + OUTPUTS) * x.dtype.itemsize + 16 * ROWS * OUTPUTS
    return inputs % LANES == 0 and _outputs(outputs, halves) is not None and held <= CHIP_BYTES


def _outputs(channels: int, halves: int) -> int | None:
    """Return the number of output channels that a program works on, all if it can; None if there is none that fits."""
    if halves == 1 and channels <= OUTPUTS and channels % LANES == 0:
        return channels
    fitting = (n for n in range(OUTPUTS, 0, -TILE) if channels % (halves * n) == 0)
    return next(fitting, None)


def product(
    x: Array,
    weight: Array,
    input_scale: Array,
    scale: Array,
    bias: Array | None,
    *,
    norm: tuple[Array, Array] | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    gate: Callable[[Array], Array] | None = None,
    interpret: bool = False,
) -> Array:
    """[M, K] by int8 [K, N] -> [M, N], in the form of `nn.quantised`; rounding is by multiplication with 1 / scale.

    `norm`: weight and bias [K] of a layer norm before. `residual` [M, N] is added. With a `gate` the result is
    [M, N / 2]: the first half of the channels times `gate` of the second.
    """
    images = (x,) if residual is None else (x, residual)
    run = partial(_product, normed=norm is not None, eps=eps, gate=gate, interpret=interpret)
    # vectors as they are, because each operation on a few numbers costs a TPU a microsecond
    bias = jnp.zeros_like(scale) if bias is None else bias
    return by_image(run, images, (weight, input_scale.reshape(1), scale, bias, *(norm or ())))


def _product(
    x: Array, *rest: Array, normed: bool, eps: float, gate: Callable[[Array], Array] | None, interpret: bool
) -> Array:
    residual, (weight, input_scale, scale, bias, *norm) = rest[: -4 - 2 * normed], rest[-4 - 2 * normed :]
    m, inputs = x.shape
    halves = 1 if gate is None else 2
    channels = weight.shape[-1] // halves
    outputs = _outputs(weight.shape[-1], halves)
    assert outputs is not None
    rows, parts = min(m, ROWS), channels // outputs

    weights = [pl.BlockSpec((inputs, outputs), lambda out, row, at=i * parts: (0, at + out)) for i in range(halves)]
    own = pl.BlockSpec((rows, inputs), lambda out, row: (row, 0))
    result = pl.BlockSpec((rows, outputs), lambda out, row: (row, out))
    vectors = [pl.BlockSpec(each.shape, lambda out, row: (0,)) for each in (scale, bias, *norm)]
    number = pl.BlockSpec(memory_space=tpu.SMEM)
    return pl.pallas_call(
        partial(_kernel, halves=halves, normed=normed, eps=eps, gate=gate),
        out_shape=jax.ShapeDtypeStruct((m, channels), x.dtype),
        grid=(parts, pl.cdiv(m, rows)),
        in_specs=[number, own, *weights, *vectors, *[result] * len(residual)],
        out_specs=result,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",) * 2, vmem_limit_bytes=CHIP_BYTES),
        cost_estimate=pl.CostEstimate(
            flops=2 * m * inputs * weight.shape[-1] // INT8_GAIN,
            bytes_accessed=weight.size + x.dtype.itemsize * (parts * x.size + (1 + len(residual)) * m * channels),
            transcendentals=0 if gate is None else m * channels,
        ),
        interpret=interpret,
        name="product",
    )(input_scale, x, *[weight] * halves, scale, bias, *norm, *residual)


def _kernel(
    input_scale, x, *refs, halves: int, normed: bool, eps: float, gate: Callable[[Array], Array] | None
) -> None:
    *refs, out = refs
    weights, (scale, bias, *rest) = refs[:halves], refs[halves:]
    f = x[...].astype(jnp.float32)
    if normed:
        norm_weight, norm_bias, *rest = rest
        f -= f.mean(-1, keepdims=True)
        f *= jax.lax.rsqrt(jnp.square(f).mean(-1, keepdims=True) + eps)
        f = (f * _row(norm_weight) + _row(norm_bias)).astype(x.dtype).astype(jnp.float32)
    rounded = jnp.clip(jnp.round(f * (1 / input_scale[0])), -INT8_MAX, INT8_MAX).astype(jnp.int8)

    def half(i: int) -> Array:
        all_of_it = scale.shape == out.shape[-1:]
        first = (i * pl.num_programs(0) + pl.program_id(0)) * out.shape[-1]
        own = slice(None) if all_of_it else pl.ds(first, out.shape[-1])
        sums = jax.lax.dot_general(rounded, weights[i][...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
        return sums.astype(jnp.float32) * (_row(scale, own) * input_scale[0]) + _row(bias, own)

    y = half(0)
    if gate is not None:
        y *= gate(half(1))
    for residual in rest:
        y += residual[...].astype(jnp.float32)
    out[...] = y.astype(out.dtype)


def _row(vector, own: pl.Slice | slice = slice(None)) -> Array:
    """Some of [N] -> [1, M] float32."""
    return vector[own].astype(jnp.float32)[None]
