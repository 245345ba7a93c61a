"""Channels that become pixels, pixels that become channels (Shi et al. 2016, arXiv:1609.05158), and the last layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxl.nn.layers import Params, conv


def shuffle(x: Array, factor: int) -> Array:
    """[B, H, W, C * factor^2] -> [B, H * factor, W * factor, C], as torch's `pixel_shuffle`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // factor**2, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, c // factor**2)


def unshuffle(x: Array, factor: int) -> Array:
    """[B, H, W, C] -> [B, H / factor, W / factor, C * factor^2], as torch's `pixel_unshuffle`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // factor, w // factor, c * factor**2)


def last_conv(p: Params, x: Array) -> Array:
    """[B, H, W, C] -> [B, H, W, O], in float32: eight bits of bfloat16 would be fewer than a pixel's."""
    return conv(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p), x.astype(jnp.float32))
