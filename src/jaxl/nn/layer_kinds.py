"""The kinds of layer: which parameters a linear layer or a convolution may have, and what it does with them.

In the tree of parameters a layer is a mapping. Its names say its kind; `layer_of` reads them, and nothing else does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.kernels import Kernels, by_rows, wide_sums, winograd
from jaxl.nn.quantised import observed, quantise, rounded, weight_scale

Params = Mapping[str, Any]

# What a layer may have besides the `weight` and `bias` of its checkpoint.
SCALE, INPUT_SCALE = "scale", "input_scale"  # Quantised
WINOGRAD = "winograd"  # Winograd
LARGEST = "input_largest"  # Observed
ROUNDED = "rounded"  # Tried, with an input's scale
DOWN, UP, SCALE_IN, SCALE_OUT = ADAPTERS = "adapter_down", "adapter_up", "adapter_in", "adapter_out"  # Adapted


def layer_of(p: Params) -> Layer:
    """Return the layer that has these parameters. Raises ValueError for names that no kind has together."""
    if DOWN in p:
        return _adapted_layer(p)
    weight, bias, more = p["weight"], p.get("bias"), p.keys() - {"weight", "bias"}
    if more == {SCALE, INPUT_SCALE}:
        return Quantised(weight, bias, p[SCALE], p[INPUT_SCALE])
    exact = Winograd(weight, bias, p[WINOGRAD]) if WINOGRAD in more else Plain(weight, bias)
    if more - {WINOGRAD} == {ROUNDED, INPUT_SCALE}:
        return Tried(exact, p[ROUNDED], p[INPUT_SCALE])
    if more - {WINOGRAD, LARGEST}:
        raise ValueError(f"no kind of layer has these parameters together: {', '.join(sorted(p))}")
    return Observed(exact, p[LARGEST]) if LARGEST in more else exact


def adapted(params: Params, adapters: Params | None) -> Params:
    """Return the tree of parameters in which the layers that `adapters` has are `Adapted`; it has the layers' paths."""
    if adapters is None:
        return params
    return {
        **params,
        **{
            name: adapted(params.get(name, {}), below) if isinstance(below, Mapping) else below
            for name, below in adapters.items()
        },
    }


class Layer(ABC):
    """A linear layer or a convolution."""

    @abstractmethod
    def linear(self, x: Array) -> Array:
        """[..., I] -> [..., O]."""

    def linear_of_both(self, x: Array, skip: Array) -> Array:
        """[..., I] and [..., S] -> [..., O], by a weight of I+S rows: joined, unless a kind has a better way."""
        return self.linear(jnp.concatenate([x, skip], axis=-1))

    @abstractmethod
    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        """[B, H, W, I] -> [B, H', W', O]; `padding` is (before, after), on both axes."""


@dataclass(frozen=True)
class Plain(Layer):
    """A layer as the checkpoint has it: weight [I, O] or [h, w, I, O], bias [O]."""

    weight: Array
    bias: Array | None

    def linear(self, x: Array) -> Array:
        weight = self.weight
        y = (x.reshape(-1, x.shape[-1]) @ weight.reshape(weight.shape[-2:])).reshape(*x.shape[:-1], weight.shape[-1])
        return _plus(y, self.bias)

    def linear_of_both(self, x: Array, skip: Array) -> Array:
        own, behind = jnp.split(self.weight.reshape(-1, self.weight.shape[-1]), [x.shape[-1]])
        return _plus(x @ own + skip @ behind, self.bias)

    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        if kernels.conv == "tpu" and self.bias is not None and stride == 1 and padding == (1, 1):
            from jaxl.kernels import tpu_conv as tpu  # Pallas takes a third of a second to import

            if tpu.takes(x, self.weight):
                return tpu.conv(x, self.weight, self.bias)
        plain = (stride, padding, self.weight.shape[0]) == (1, (1, 1), 3)
        if wide_sums.takes(kernels, x) and plain and wide_sums.fits(x, self.weight.shape[-1]):
            return wide_sums.convolution(x, self.weight, self.bias)
        if kernels.conv == "winograd" and plain and winograd.pays(x, self.weight):
            return _plus(winograd.convolve(x, self.weight), self.bias)
        return _plus(_convolved(x, self.weight, stride, padding), self.bias)


@dataclass(frozen=True)
class Winograd(Plain):
    """A 3x3 convolution of stride 1 that has its weight transformed as well: see `kernels.winograd`."""

    transformed: Array

    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        if winograd.takes(x):
            return _plus(winograd.convolve(x, self.transformed), self.bias)
        return super().conv(x, stride, padding, kernels)


@dataclass(frozen=True)
class Quantised(Layer):
    """A layer of eight-bit numbers. The scales are what one unit of the weight and of the rounded input stands for.

    An int8 weight is laid out as a plain one, with `scale` float32 [O]; one of float8_e4m3fn is [O, I] in a linear
    layer, with `scale` float32 [], a power of two, or [O] as a checkpoint has it. `input_scale` is float32 []. Results
    have the dtype of what comes in.
    """

    weight: Array
    bias: Array | None
    scale: Array
    input_scale: Array

    def linear(self, x: Array) -> Array:
        axis = 0 if self.weight.dtype == jnp.int8 else 1

        def product(x: Array, weight: Array, dtype: DTypeLike) -> Array:
            return lax.dot_general(x, weight, (((x.ndim - 1,), (axis,)), ((), ())), preferred_element_type=dtype)

        return self._apply(x, product)

    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        def product(x: Array, weight: Array, dtype: DTypeLike) -> Array:
            return _convolved(x, weight, stride, padding, dtype)

        return self._apply(x, product)

    def _apply(self, x: Array, product: Callable[[Array, Array, DTypeLike], Array]) -> Array:
        """Multiply in the form of `nn.quantised`; `product` takes values, weights and the dtype of the result."""
        weight, scale, input_scale = self.weight, self.scale, self.input_scale
        numbers = quantise(x, input_scale, weight.dtype)
        if weight.dtype == jnp.int8:
            sums = product(numbers, weight, jnp.int32)
        else:
            # or XLA may convert the weights once, before a loop over timesteps, and multiply wide numbers, as on CPUs
            numbers, weight = lax.optimization_barrier((numbers, weight))
            values, weights = numbers.astype(x.dtype), weight.astype(x.dtype)
            if not scale.ndim:
                values, weights = values * input_scale.astype(x.dtype), weights * scale.astype(x.dtype)
                return _plus(product(values, weights, x.dtype), self.bias)
            sums = product(values, weights, jnp.float32)
        y = sums.astype(jnp.float32) * (scale * input_scale)
        return _plus(y, None if self.bias is None else self.bias.astype(jnp.float32)).astype(x.dtype)


@dataclass(frozen=True)
class Observed(Layer):
    """An exact layer that measures its input: the gradient by `largest` is the greatest magnitude in it.

    A quantised one cannot, because no gradient comes back through what is rounded to integers.
    """

    exact: Plain
    largest: Array

    def linear(self, x: Array) -> Array:
        return self.exact.linear(observed(x, self.largest))

    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        return self.exact.conv(observed(x, self.largest), stride, padding, kernels)


@dataclass(frozen=True)
class Tried(Layer):
    """An exact layer that multiplies what its `Quantised` form would, where `rounded` is 1: so one program tries any
    layers.

    `rounded`, [], is 0 or 1 in the dtype of eight bits, `input_scale` float32 [].
    """

    exact: Plain
    rounded: Array
    input_scale: Array

    def linear(self, x: Array) -> Array:
        return self._either(x, lambda layer, x: layer.linear(x))

    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        return self._either(x, lambda layer, x: layer.conv(x, stride, padding, kernels))

    def _either(self, x: Array, run: Callable[[Layer, Array], Array]) -> Array:
        def with_rounded(x: Array) -> Array:
            weight, dtype = self.exact.weight, self.rounded.dtype
            weight = rounded(weight, weight_scale(weight, dtype), dtype)
            return run(Plain(weight, self.exact.bias), rounded(x, self.input_scale, dtype))

        # a choice rather than a selection, so that each layer costs what it does, and its weight is not there twice
        return lax.cond(self.rounded.astype(jnp.float32) > 0, with_rounded, lambda x: run(self.exact, x), x)


@dataclass(frozen=True)
class Adapted(Layer):
    """A layer to which adapters add for each of N images something of its own: its weight is
    `W * scale_in * scale_out + down @ up` (Hu et al. 2021, arXiv:2106.09685, section 4.1; the scales are those of Liu
    et al. 2022, arXiv:2205.05638, and Liu et al. 2024, arXiv:2402.09353).

    What comes in are the rows of the images, one image's after another's. `down` is [N, I, R], or [N, I, h, w, R] in a
    convolution, `up` [N, R, O], `scale_in` [N, I] and `scale_out` [N, O], both or none. With scales, `bias` is that of
    the layer and `base` has none.
    """

    base: Layer
    bias: Array | None
    down: Array
    up: Array
    scale_in: Array | None
    scale_out: Array | None

    def linear(self, x: Array) -> Array:
        y = self._scaled(self.base.linear(self._rescaled(x)))
        return _plus(y + self._raised(self._by_image(x) @ self._matrix(self.down), y), self.bias)

    def linear_of_both(self, x: Array, skip: Array) -> Array:
        if self.scale_in is not None:
            return super().linear_of_both(x, skip)
        y = self.base.linear_of_both(x, skip)
        own, behind = jnp.split(self._matrix(self.down), [x.shape[-1]], axis=1)
        return y + self._raised(self._by_image(x) @ own + self._by_image(skip) @ behind, y)

    def conv(self, x: Array, stride: int, padding: tuple[int, int], kernels: Kernels) -> Array:
        y = self._scaled(self.base.conv(self._rescaled(x), stride, padding, kernels))
        n, _, height, width, rank = self.down.shape
        # what each tap of the kernel makes of each position, in one product; the taps are added up while they are thin
        taps = (self._by_image(x) @ self._matrix(self.down)).reshape(*x.shape[:3], height, width, rank)
        taps = by_rows.padded(jnp.pad(taps, ((0, 0), (0, 0), padding, (0, 0), (0, 0), (0, 0))), *padding)
        rows, columns = (stride * (size - 1) + 1 for size in y.shape[1:3])
        low = sum(
            taps[:, i : i + rows : stride, j : j + columns : stride, i, j] for i in range(height) for j in range(width)
        )
        return _plus(y + self._raised(jnp.asarray(low).reshape(n, -1, rank), y), self.bias)

    def _by_image(self, x: Array) -> Array:
        return x.reshape(len(self.down), -1, x.shape[-1])

    def _matrix(self, down: Array) -> Array:
        return down.reshape(*down.shape[:2], -1)

    def _raised(self, low: Array, y: Array) -> Array:
        return (low @ self.up).reshape(y.shape)

    def _rescaled(self, x: Array) -> Array:
        return x if self.scale_in is None else (self._by_image(x) * self.scale_in[:, None]).reshape(x.shape)

    def _scaled(self, y: Array) -> Array:
        return y if self.scale_out is None else (self._by_image(y) * self.scale_out[:, None]).reshape(y.shape)


def _adapted_layer(p: Params) -> Adapted:
    scaled = SCALE_OUT in p
    own = {name: leaf for name, leaf in p.items() if name not in ADAPTERS and not (scaled and name == "bias")}
    bias = p.get("bias") if scaled else None
    return Adapted(layer_of(own), bias, p[DOWN], p[UP], p.get(SCALE_IN), p.get(SCALE_OUT))


def _plus(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias


def _convolved(x: Array, weight: Array, stride: int, padding: tuple[int, int], dtype: DTypeLike | None = None) -> Array:
    rows = padding
    if by_rows.devices() > 1:
        x, rows = by_rows.padded(x, *padding), (0, 0)
    return lax.conv_general_dilated(
        x,
        weight,
        (stride, stride),
        (rows, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=dtype,
    )
