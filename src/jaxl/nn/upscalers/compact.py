"""SRVGGNetCompact, the small network of Real-ESRGAN: convolutions at one size, whose channels become pixels.

https://github.com/xinntao/Real-ESRGAN, `realesrgan/archs/srvgg_arch.py`. It adds what it makes to the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.kernels import XLA, Kernels
from jaxl.nn.layers import Params, Shapes, conv, conv_shapes, upsample
from jaxl.nn.upscalers.pixels import last_conv, shuffle


@dataclass(frozen=True)
class CompactConfig:
    """So many convolutions of one width between the first and the last."""

    width: int
    convolutions: int
    scale: int
    multiple: int = 1


def compact_shapes(cfg: CompactConfig, dtype: DTypeLike = jnp.float32) -> Shapes:
    """The parameter tree: every second layer is a PReLU (He et al. 2015, arXiv:1502.01852) with a slope a channel."""
    last = 2 * cfg.convolutions + 2
    return {
        "body": {
            **{str(i): conv_shapes(cfg.width if i else 3, cfg.width, 3, dtype) for i in range(0, last, 2)},
            **{str(i): {"weight": jax.ShapeDtypeStruct((cfg.width,), dtype)} for i in range(1, last, 2)},
            str(last): conv_shapes(cfg.width, 3 * cfg.scale**2, 3, dtype),
        }
    }


def compact(params: Params, cfg: CompactConfig, pictures: Array, kernels: Kernels = XLA) -> Array:
    """Pictures [B, H, W, 3] in 0..1 -> [B, H * scale, W * scale, 3] float32, not clipped."""
    body, last = params["body"], 2 * cfg.convolutions + 2
    x = pictures.astype(body["0"]["weight"].dtype)
    for i in range(0, last, 2):
        x = conv(body[str(i)], x, kernels=kernels)
        x = jnp.where(x >= 0, x, x * body[str(i + 1)]["weight"])
    made = shuffle(last_conv(body[str(last)], x), cfg.scale)
    _, height, width, _ = made.shape
    return upsample(pictures.astype(jnp.float32), height, width) + made
