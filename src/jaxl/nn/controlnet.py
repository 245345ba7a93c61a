"""ControlNet: a copy of the U-Net's way down that sees a picture, and adds to the U-Net's skips and middle.

Zhang et al. 2023, arXiv:2302.05543, section 3; diffusers `ControlNetModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import ControlNetConfig
from jaxl.kernels import XLA, Kernels
from jaxl.nn.layers import Params, Shapes, conv, conv_shapes, numbered
from jaxl.nn.unet import Shared, down, embedding, middle, unet_shapes

# what a ControlNet has of a U-Net
OF_UNET = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")


def controlnet_shapes(cfg: ControlNetConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of a ControlNet."""
    of_unet = unet_shapes(cfg.unet, dtype)
    *skips, last = (conv_shapes(width, width, 1, dtype) for width in cfg.residuals)
    widths = cfg.embedding
    return {
        **{name: of_unet[name] for name in OF_UNET if name in of_unet},
        "controlnet_cond_embedding": {
            "conv_in": conv_shapes(cfg.picture_channels, widths[0], 3, dtype),
            "blocks": numbered(
                [conv_shapes(a, b, 3, dtype) for before, after in pairwise(widths) for a, b in _pair(before, after)]
            ),
            "conv_out": conv_shapes(widths[-1], cfg.unet.channels[0], 3, dtype),
        },
        "controlnet_down_blocks": numbered(skips),
        "controlnet_mid_block": last,
    }


def _pair(before: int, after: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (before, before), (before, after)


def embed_picture(params: Params, cfg: ControlNetConfig, pictures: Array) -> Array:
    """Pictures [B, H, W, C] in 0..1 -> what is added to the embedded latents at every timestep, [B, h, w, width].

    No timestep enters it, so it is made once for an image.
    """
    p = params["controlnet_cond_embedding"]
    x = (pictures[..., ::-1] if cfg.bgr else pictures).astype(p["conv_in"]["weight"].dtype)
    x = jax.nn.silu(conv(p["conv_in"], x))
    for i, block in enumerate(p["blocks"][str(i)] for i in range(len(p["blocks"]))):
        x = jax.nn.silu(conv(block, x, stride=1 + i % 2, padding=(1, 1)))
    return conv(p["conv_out"], x)


def controlnet(
    params: Params,
    cfg: ControlNetConfig,
    x: Array,
    t: Array,
    embedded: Array,
    context: Params,
    pooled: Array,
    time_ids: Array,
    *,
    lengths: Array | None = None,
    only_first: bool = False,
    kernels: Kernels = XLA,
) -> list[Array]:
    """Return what is added to the U-Net's skips, in their order, and to its middle, each [B, h, w, C].

    `embedded` is what `embed_picture` makes of the pictures, `context` what `unet_context` makes of the texts with this
    network's parameters; all else is as in `unet`. With `only_first` all but the first are zeros, and cost nothing.
    """
    x = x.astype(params["conv_in"]["weight"].dtype)
    first = conv(params["conv_in"], x) + embedded
    zero_convs = [params["controlnet_down_blocks"][str(i)] for i in range(len(cfg.residuals) - 1)]
    if only_first:
        shapes = residual_shapes(cfg, first.shape)
        return [_added(cfg, zero_convs[0], first), *(jnp.zeros(shape, first.dtype) for shape in shapes[1:])]
    temb = embedding(params, cfg.unet, t, pooled, time_ids)
    shared = Shared(cfg.unet, kernels, temb, context, lengths)
    last, skips = down(params, shared, first)
    outs = (*skips, middle(params, shared, last))
    layers = (*zero_convs, params["controlnet_mid_block"])
    return [_added(cfg, p, out) for p, out in zip(layers, outs, strict=True)]


def _added(cfg: ControlNetConfig, p: Params, out: Array) -> Array:
    out = conv(p, out)
    return jnp.broadcast_to(out.mean((1, 2), keepdims=True), out.shape) if cfg.pooled else out


def residual_shapes(cfg: ControlNetConfig, first: Sequence[int]) -> list[tuple[int, ...]]:
    """The shapes of what a ControlNet adds, from that of what is added first, [B, h, w, C]."""
    batch, height, width, _ = first
    shapes = [(batch, height, width, cfg.residuals[0])]
    for i, depths in enumerate(cfg.unet.down):
        shapes += [(batch, height, width, cfg.unet.channels[i])] * len(depths)
        if i < len(cfg.unet.down) - 1:
            height, width = -(-height // 2), -(-width // 2)
            shapes.append((batch, height, width, cfg.unet.channels[i]))
    return [*shapes, (batch, height, width, cfg.residuals[-1])]
