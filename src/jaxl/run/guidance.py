"""Guidance that is more than a sum of two predictions: APG, CFG-Zero*, dynamic thresholding and Perp-Neg."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxl.diffusion.loop import Row

PIXELS = (1, 2, 3)


def shaped(positive: Array, negative: Array, x: Array, row: Row, momentum: Array) -> tuple[Array, Array]:
    """Return the guided prediction [B, h, w, C] of two, and the momentum for the next row.

    `x` are the latents as the network sees them. Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416,
    algorithm 1) and dynamic thresholding (below) are of denoised estimates; CFG-Zero* (Fan et al. 2025,
    arXiv:2503.18886, equation 13) scales the negative prediction to be as near to the positive one as it can.
    """

    def column(name: str) -> Array:
        return row[name][:, None, None, None]

    nearest = _sum(positive * negative) / _sum(negative**2)
    negative = jnp.where(column("cfg_zero") > 0, nearest * negative, negative)
    c_out = column("c_out")
    estimate = column("c_skip") / column("c_in") * x + c_out * positive
    momentum = c_out * (positive - negative) + column("apg_momentum") * momentum
    limit, length = column("apg_threshold"), jnp.sqrt(_sum(momentum**2))
    away = momentum * jnp.where((limit > 0) & (length > limit), limit / length, 1.0)
    along = _sum(away * estimate) / _sum(estimate**2) * estimate
    away = away - (1 - column("apg_eta")) * along
    guided, mimic = estimate + (column("guidance") - 1) * away, column("mimic_scale")
    mimicked = estimate + (mimic - 1) * away
    guided = jnp.where(mimic > 0, thresholded(guided, mimicked, row["mimic_percentile"]), guided)
    return positive + jnp.where(c_out != 0, (guided - estimate) / c_out, 0.0), momentum


def perpendicular(positive: Array, negative: Array, empty: Array, guidance: Array, scale: Array) -> Array:
    """Return the prediction [B, h, w, C] guided to the prompt, and away from what the negative one has not in common.

    Of what the negative prompt adds to an empty text, the part along what the prompt adds is left out, and the rest is
    taken back, with a `scale` (Perp-Neg, Armandpour et al. 2023, arXiv:2304.04968). `guidance` and `scale` are
    [B, 1, 1, 1]. Which part that is does not depend on what is predicted: noise, velocity or the estimate.
    """
    wanted, unwanted = positive - empty, negative - empty
    # over each image alone, so that it depends on no other; ComfyUI's PerpNegGuider sums over all of a batch
    length = _sum(wanted**2)
    # what an empty prompt adds has no direction
    along = jnp.where(length > 0, _sum(unwanted * wanted) / length, 0.0)
    return empty + guidance * (wanted - scale * (unwanted - along * wanted))


def thresholded(guided: Array, mimicked: Array, percentile: Array) -> Array:
    """Return an estimate [B, h, w, C] clipped at a percentile [B] of what it has in each channel, and made smaller.

    Its largest number is then that of another, less guided one. (Saharia et al. 2022, arXiv:2205.11487, section 2.3,
    for pixels; for latents https://github.com/mcmonkeyprojects/sd-dynamic-thresholding with its usual options.)
    """
    means = guided.mean((1, 2), keepdims=True)
    centred = guided - means
    largest = jnp.abs(mimicked - mimicked.mean((1, 2), keepdims=True)).max((1, 2), keepdims=True)
    flat = jnp.sort(jnp.abs(centred).reshape(centred.shape[0], -1, centred.shape[-1]), axis=1)
    place = percentile[:, None, None] * (flat.shape[1] - 1)
    low = jnp.floor(place).astype(jnp.int32)
    below, above = (jnp.take_along_axis(flat, at, axis=1) for at in (low, jnp.minimum(low + 1, flat.shape[1] - 1)))
    edge = jnp.maximum((below + (place - low) * (above - below))[:, :, None], largest)
    return jnp.clip(centred, -edge, edge) / edge * largest + means


def _sum(a: Array) -> Array:
    return a.sum(PIXELS, keepdims=True)
