"""FreeU: how much of a decoder comes from the U-Net's backbone, and how much from its skips.

Si et al. 2023, arXiv:2309.11497, in the form of diffusers' `apply_freeu`: the first half of the backbone's channels is
scaled, and of the skip's spectrum the box of frequencies -1 and 0 along each axis.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxl.kernels import by_rows


def reweigh(x: Array, skip: Array, skip_scale: Array, backbone_scale: Array) -> tuple[Array, Array]:
    """Backbone x [B, H, W, C] and skip [B, H, W, D] in any dtype, scales float32 [B]; scales of 1 change nothing."""
    s, b = (scale[:, None, None, None] for scale in (skip_scale, backbone_scale))
    gain = jnp.where(jnp.arange(x.shape[-1]) < x.shape[-1] // 2, b, 1.0)
    reweighed = skip.astype(jnp.float32) + (s - 1.0) * low_frequencies(skip)
    return (x.astype(jnp.float32) * gain).astype(x.dtype), reweighed.astype(skip.dtype)


def low_frequencies(x: Array) -> Array:
    """The part of x [B, H, W, C] at frequencies -1 and 0 along H and W, its imaginary part dropped; float32.

    The box is not symmetric, so the real part is what diffusers keeps of the inverse transform. It is a projection on
    at most four plane waves, which two small products compute without a Fourier transform.
    """
    b, h, w, c = x.shape
    # [K, H, W, 1], of the whole picture
    waves = by_rows.own(_waves(h * by_rows.devices(), w)).reshape(-1, h * w)
    pixels = x.astype(jnp.float32).reshape(b, h * w, c)
    # a TPU would round the operands to bfloat16
    amplitudes = by_rows.total(jnp.einsum("kp,bpc->bkc", waves, pixels, precision=lax.Precision.HIGHEST))
    low = jnp.einsum("kp,bkc->bpc", waves, amplitudes, precision=lax.Precision.HIGHEST)
    return low.reshape(x.shape)


def _waves(height: int, width: int) -> Array:
    """Cosines and sines of the box, [K, H, W, 1] float32, normalised; an axis of one pixel has frequency 0 alone."""
    rows, columns = ({-1 % n, 0} for n in (height, width))
    y, x = np.arange(height)[:, None] / height, np.arange(width) / width
    angles = np.stack([2 * np.pi * (f * y + g * x) for f in sorted(rows) for g in sorted(columns)])
    waves = np.concatenate([np.cos(angles), np.sin(angles)]) / np.sqrt(height * width)
    return jnp.asarray(waves.astype(np.float32)[..., None])
