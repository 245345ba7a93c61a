"""T2I-Adapter: features of a picture that are added on the U-Net's way down.

Mou et al. 2023, arXiv:2302.08453, section 3.2; diffusers `T2IAdapter` of the type `full_adapter_xl`, SDXL's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.config import T2IAdapterConfig
from jaxl.nn.layers import Params, Shapes, conv, conv_shapes, linear, numbered

HALVED = 2  # the feature that is half as large as the one before


def t2i_adapter_shapes(cfg: T2IAdapterConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of a T2I-Adapter."""
    widths = cfg.channels

    def block(before: int, width: int) -> Shapes:
        layer = {"block1": conv_shapes(width, width, 3, dtype), "block2": conv_shapes(width, width, 1, dtype)}
        shapes: Shapes = {"resnets": numbered([layer] * cfg.depth)}
        return shapes if before == width else shapes | {"in_conv": conv_shapes(before, width, 1, dtype)}

    # the width of the input differs from its own in the second and third alone, as published ones have it
    inputs = [widths[i - 1] if i in (1, HALVED) else width for i, width in enumerate(widths)]
    return {
        "adapter": {
            "conv_in": conv_shapes(cfg.picture_channels * cfg.factor**2, widths[0], 3, dtype),
            "body": numbered([block(before, width) for before, width in zip(inputs, widths, strict=True)]),
        }
    }


def features(params: Params, cfg: T2IAdapterConfig, pictures: Array) -> tuple[Array, ...]:
    """Pictures [B, H, W, C] in 0..1 -> the features, [B, h, w, width] each. They are made once for an image."""
    p, factor = params["adapter"], cfg.factor
    x = pictures.astype(p["conv_in"]["weight"].dtype)
    # the U-Net's levels are as large as half of those above, rounded up
    x = jnp.pad(x, ((0, 0), *((0, -size % factor) for size in x.shape[1:3]), (0, 0)), mode="edge")
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels).transpose(0, 1, 3, 5, 2, 4)
    x = conv(p["conv_in"], x.reshape(*x.shape[:3], -1))
    found = []
    for i in range(len(cfg.channels)):
        block = p["body"][str(i)]
        x = _halved(x) if i == HALVED else x
        x = linear(block["in_conv"], x) if "in_conv" in block else x
        for layer in (block["resnets"][str(j)] for j in range(cfg.depth)):
            x = x + linear(layer["block2"], jax.nn.relu(conv(layer["block1"], x)))
        found.append(x)
    return tuple(found)


def _halved(x: Array) -> Array:
    """Return means of 2x2, at an odd border of what there is."""
    x = jnp.pad(x, ((0, 0), *((0, size % 2) for size in x.shape[1:3]), (0, 0)), mode="edge")
    return lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
