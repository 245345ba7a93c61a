"""The network of the Fréchet Inception distance: Inception v3 with TensorFlow's weights of 2015, to its last pooling.

Szegedy et al. 2015, arXiv:1512.00567; with the three peculiarities of the network that FID is defined by (Heusel et al.
2017, arXiv:1706.08500): means of pooling leave out the border, the last block takes maxima in their place, and pictures
are enlarged or reduced to 299 pixels without a filter. Tensors have torchvision's names, as in the weights of
https://github.com/mseitzer/pytorch-fid.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxl.errors import CheckpointError
from jaxl.weights.store import read_header

SIDE = 299
EPSILON = 1e-3  # of batch norm

Layer = tuple[Array, Array]
Weights = dict[str, Layer]

_SINGLE = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
_A = ("1x1", "5x5_1", "5x5_2", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3", "_pool")
_B = ("3x3", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3")
_C = ("1x1", *(f"7x7_{i}" for i in (1, 2, 3)), *(f"7x7dbl_{i}" for i in (1, 2, 3, 4, 5)), "_pool")
_D = ("3x3_1", "3x3_2", *(f"7x7x3_{i}" for i in (1, 2, 3, 4)))
_E = ("1x1", "3x3_1", "3x3_2a", "3x3_2b", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3a", "3x3dbl_3b", "_pool")
_BLOCKS = {"5b": _A, "5c": _A, "5d": _A, "6a": _B, "6b": _C, "6c": _C, "6d": _C, "6e": _C, "7a": _D, "7b": _E, "7c": _E}
LAYERS = (
    *(f"Conv2d_{name}" for name in _SINGLE),
    *(f"Mixed_{block}.branch{name}" for block, names in _BLOCKS.items() for name in names),
)


def read_inception(file: Path) -> Weights:
    """The weights [h, w, I, O] and biases [O] of each convolution, with its batch norm. Raises CheckpointError."""
    tensors = read_header(file)

    def read(name: str) -> np.ndarray:
        if name not in tensors:
            raise CheckpointError(f"{file}: no {name} in it; give FID's Inception v3, saved as safetensors")
        return tensors[name].read().astype(np.float32)

    params = {}
    for layer in LAYERS:
        scale = read(f"{layer}.bn.weight") / np.sqrt(read(f"{layer}.bn.running_var") + EPSILON)
        weight = read(f"{layer}.conv.weight").transpose(2, 3, 1, 0) * scale
        bias = read(f"{layer}.bn.bias") - scale * read(f"{layer}.bn.running_mean")
        params[layer] = jnp.asarray(weight), jnp.asarray(bias)
    return params


@jax.jit
def features(params: Weights, images: Array) -> Array:
    """uint8 pictures [B, H, W, 3] -> [B, 2048]."""
    x = images.astype(jnp.float32) / 127.5 - 1
    x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "linear", antialias=False)
    x = _conv(params["Conv2d_1a_3x3"], x, stride=2, padding="VALID")
    x = _conv(params["Conv2d_2a_3x3"], x, padding="VALID")
    x = _maximum(_conv(params["Conv2d_2b_3x3"], x))
    x = _conv(params["Conv2d_3b_1x1"], x)
    x = _maximum(_conv(params["Conv2d_4a_3x3"], x, padding="VALID"))
    for block, names in _BLOCKS.items():
        p = {name: params[f"Mixed_{block}.branch{name}"] for name in names}
        pooled = _maximum(x, stride=1, padding="SAME") if block == "7c" else _mean(x)
        x = jnp.concatenate(_RULES[names](p, x, pooled), axis=-1)
    return x.mean((1, 2))


def _a(p: Weights, x: Array, pooled: Array) -> list[Array]:
    return [
        _chain(p, x, "1x1"),
        _chain(p, x, "5x5_1", "5x5_2"),
        _chain(p, x, "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
        _chain(p, pooled, "_pool"),
    ]


def _b(p: Weights, x: Array, pooled: Array) -> list[Array]:
    return [_halved(p, x, "3x3"), _halved(p, _chain(p, x, "3x3dbl_1", "3x3dbl_2"), "3x3dbl_3"), _maximum(x)]


def _c(p: Weights, x: Array, pooled: Array) -> list[Array]:
    return [
        _chain(p, x, "1x1"),
        _chain(p, x, "7x7_1", "7x7_2", "7x7_3"),
        _chain(p, x, "7x7dbl_1", "7x7dbl_2", "7x7dbl_3", "7x7dbl_4", "7x7dbl_5"),
        _chain(p, pooled, "_pool"),
    ]


def _d(p: Weights, x: Array, pooled: Array) -> list[Array]:
    deep = _chain(p, x, "7x7x3_1", "7x7x3_2", "7x7x3_3")
    return [_halved(p, _chain(p, x, "3x3_1"), "3x3_2"), _halved(p, deep, "7x7x3_4"), _maximum(x)]


def _e(p: Weights, x: Array, pooled: Array) -> list[Array]:
    wide, deep = _chain(p, x, "3x3_1"), _chain(p, x, "3x3dbl_1", "3x3dbl_2")
    return [
        _chain(p, x, "1x1"),
        *(_chain(p, wide, name) for name in ("3x3_2a", "3x3_2b")),
        *(_chain(p, deep, name) for name in ("3x3dbl_3a", "3x3dbl_3b")),
        _chain(p, pooled, "_pool"),
    ]


_RULES = {_A: _a, _B: _b, _C: _c, _D: _d, _E: _e}


def _chain(p: Weights, x: Array, *names: str) -> Array:
    for name in names:
        x = _conv(p[name], x)
    return x


def _halved(p: Weights, x: Array, name: str) -> Array:
    return _conv(p[name], x, stride=2, padding="VALID")


def _conv(layer: Layer, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
    weight, bias = layer
    y = lax.conv_general_dilated(x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y + bias)


def _maximum(x: Array, stride: int = 2, padding: str = "VALID") -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _mean(x: Array) -> Array:
    """Return the mean of the 3x3 pixels around each, as far as they are in the picture."""
    total = partial(lax.reduce_window, init_value=0.0, computation=lax.add)
    window = {"window_dimensions": (1, 3, 3, 1), "window_strides": (1, 1, 1, 1), "padding": "SAME"}
    return total(x, **window) / total(jnp.ones_like(x[:1, :, :, :1]), **window)
