"""RRDBNet, the network of ESRGAN, BSRGAN and Real-ESRGAN: dense blocks, then nearest-neighbour enlargement.

Wang et al. 2018, arXiv:1809.00219, section 3.1; with folded pixels at its input, Wang et al. 2021, arXiv:2107.10833.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.kernels import XLA, Kernels
from jaxl.nn.layers import Params, Shapes, conv, conv_shapes, numbered, upsampled_conv
from jaxl.nn.upscalers.pixels import last_conv, unshuffle

DENSE_BLOCKS, CONVOLUTIONS = 3, 5  # of a block, and of a dense block
RESIDUAL = 0.2  # what a block adds


@dataclass(frozen=True)
class RRDBNetConfig:
    """So many `blocks` of a width, whose convolutions add `growth` channels each.

    The picture is folded by `fold` before it, and enlarged by two `doublings` times after.
    """

    width: int
    growth: int
    blocks: int
    doublings: int
    fold: int = 1

    @property
    def scale(self) -> int:
        return 2**self.doublings // self.fold

    @property
    def multiple(self) -> int:
        """Sides of pictures have to be multiples of it."""
        return self.fold


def rrdbnet_shapes(cfg: RRDBNetConfig, dtype: DTypeLike = jnp.float32) -> Shapes:
    """The parameter tree, in the names of Real-ESRGAN."""

    def dense() -> Shapes:
        inputs = [cfg.width + i * cfg.growth for i in range(CONVOLUTIONS)]
        outputs = [cfg.growth] * (CONVOLUTIONS - 1) + [cfg.width]
        return {f"conv{i + 1}": conv_shapes(inputs[i], outputs[i], 3, dtype) for i in range(CONVOLUTIONS)}

    square = partial(conv_shapes, cfg.width, cfg.width, 3, dtype)
    return {
        "conv_first": conv_shapes(3 * cfg.fold**2, cfg.width, 3, dtype),
        "body": numbered([{f"rdb{j + 1}": dense() for j in range(DENSE_BLOCKS)}] * cfg.blocks),
        "conv_body": square(),
        **{f"conv_up{i + 1}": square() for i in range(cfg.doublings)},
        "conv_hr": square(),
        "conv_last": conv_shapes(cfg.width, 3, 3, dtype),
    }


def rrdbnet(params: Params, cfg: RRDBNetConfig, pictures: Array, kernels: Kernels = XLA) -> Array:
    """Pictures [B, H, W, 3] in 0..1 -> [B, H * scale, W * scale, 3] float32, not clipped."""
    x = conv(params["conv_first"], unshuffle(pictures.astype(params["conv_first"]["weight"].dtype), cfg.fold))
    # one block is compiled, and run with the parameters of each
    body = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params["body"][str(i)] for i in range(cfg.blocks)))
    y, _ = lax.scan(lambda x, p: (_block(p, x, kernels), None), x, body)
    x = x + conv(params["conv_body"], y, kernels=kernels)
    for i in range(cfg.doublings):
        x = _leaky(upsampled_conv(params[f"conv_up{i + 1}"], x, 2 * x.shape[1], 2 * x.shape[2], kernels))
    x = _leaky(conv(params["conv_hr"], x, kernels=kernels))
    return last_conv(params["conv_last"], x)


def _block(p: Params, x: Array, kernels: Kernels) -> Array:
    y = x
    for i in range(DENSE_BLOCKS):
        y = _dense(p[f"rdb{i + 1}"], y, kernels)
    return x + RESIDUAL * y


def _dense(p: Params, x: Array, kernels: Kernels) -> Array:
    """Convolutions, each of which reads what all before it have made."""
    read = x
    for i in range(1, CONVOLUTIONS):
        read = jnp.concatenate([read, _leaky(conv(p[f"conv{i}"], read, kernels=kernels))], axis=-1)
    return x + RESIDUAL * conv(p[f"conv{CONVOLUTIONS}"], read, kernels=kernels)


def _leaky(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.2)
