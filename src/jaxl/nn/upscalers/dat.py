"""DAT, a transformer that attends by turns within windows of pixels and between channels.

Chen et al. 2023, "Dual Aggregation Transformer for Image Super-Resolution", arXiv:2308.03364. Names of parameters are
those of https://github.com/zhengchen1999/DAT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.kernels import XLA, Kernels
from jaxl.nn.layers import (
    Params,
    Shapes,
    conv,
    conv_shapes,
    gelu,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
    numbered,
)
from jaxl.nn.upscalers.pixels import last_conv, shuffle

MEAN = (0.4488, 0.4371, 0.4040)  # of the pictures it was trained on
BATCH_NORM_EPS = 1e-5
HIDDEN = -100.0  # what is added to a score that is to count for nothing


@dataclass(frozen=True)
class DATConfig:
    """Groups of `depths` blocks with `heads`, which alternate between windows of `split` pixels and channels.

    `hidden` is the width of feed-forward layers. `features` is the width after the groups; 0 makes the pixels at once
    (DAT-light). `bottlenecks`: the convolution at the end of a group is three, the middle one narrow.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    hidden: int
    split: tuple[int, int]
    scale: int
    features: int = 64
    bottlenecks: bool = False
    bias: bool = True

    @property
    def multiple(self) -> int:
        """Sides of pictures have to be multiples of it: windows come in both orientations."""
        return math.lcm(*self.split)

    @property
    def factors(self) -> tuple[int, ...]:
        """The enlargements that give the scale, one after another."""
        if not self.features or self.scale == 3:
            return (self.scale,)
        return (2,) * (self.scale.bit_length() - 1)


def dat_shapes(cfg: DATConfig, dtype: DTypeLike = jnp.float32) -> Shapes:
    """The parameter tree."""
    width, half = cfg.width, cfg.width // 2
    square = partial(linear_shapes, width, width, dtype)

    def depthwise(channels: int) -> Shapes:
        return {
            "weight": jax.ShapeDtypeStruct((3, 3, 1, channels), dtype),
            "bias": jax.ShapeDtypeStruct((channels,), dtype),
        }

    def batch_norm(channels: int) -> Shapes:
        statistics = {f"running_{name}": jax.ShapeDtypeStruct((channels,), dtype) for name in ("mean", "var")}
        return {**norm_shapes(channels, dtype), **statistics}

    def last() -> Shapes:
        if not cfg.bottlenecks:
            return conv_shapes(width, width, 3, dtype)
        narrow = width // 4
        sizes = {"0": (width, narrow, 3), "2": (narrow, narrow, 1), "4": (narrow, width, 3)}
        return {name: conv_shapes(*size, dtype) for name, size in sizes.items()}

    def bias_of(heads: int) -> Shapes:
        inner = half // 16
        return {
            "pos_proj": linear_shapes(2, inner, dtype),
            **{
                f"pos{i}": {
                    "0": norm_shapes(inner, dtype),
                    "2": linear_shapes(inner, heads if i == 3 else inner, dtype),
                }
                for i in (1, 2, 3)
            },
        }

    def attention(index: int, heads: int) -> Shapes:
        own: Shapes = (
            {"temperature": jax.ShapeDtypeStruct((heads, 1, 1), dtype)}
            if index % 2
            else {"attns": numbered([{"pos": bias_of(heads // 2)}] * 2)}
        )
        return {
            **own,
            "qkv": linear_shapes(width, 3 * width, dtype, bias=cfg.bias),
            "proj": square(),
            "dwconv": {"0": depthwise(width), "1": batch_norm(width)},
            "channel_interaction": {
                "1": conv_shapes(width, width // 8, 1, dtype),
                "2": batch_norm(width // 8),
                "4": conv_shapes(width // 8, width, 1, dtype),
            },
            "spatial_interaction": {
                "0": conv_shapes(width, width // 16, 1, dtype),
                "1": batch_norm(width // 16),
                "3": conv_shapes(width // 16, 1, 1, dtype),
            },
        }

    def block(index: int, heads: int) -> Shapes:
        gate = cfg.hidden // 2
        return {
            "norm1": norm_shapes(width, dtype),
            "attn": attention(index, heads),
            "norm2": norm_shapes(width, dtype),
            "ffn": {
                "fc1": linear_shapes(width, cfg.hidden, dtype),
                "sg": {"norm": norm_shapes(gate, dtype), "conv": depthwise(gate)},
                "fc2": linear_shapes(gate, width, dtype),
            },
        }

    groups = [
        {"blocks": numbered([block(i, heads) for i in range(depth)]), "conv": last()}
        for depth, heads in zip(cfg.depths, cfg.heads, strict=True)
    ]
    features = cfg.features or width
    outputs = cfg.features or 3
    ups = {str(2 * i): conv_shapes(features, outputs * factor**2, 3, dtype) for i, factor in enumerate(cfg.factors)}
    shapes: Shapes = {
        "conv_first": conv_shapes(3, width, 3, dtype),
        "before_RG": {"1": norm_shapes(width, dtype)},
        "layers": numbered(groups),
        "norm": norm_shapes(width, dtype),
        "conv_after_body": last(),
        "upsample": ups,
    }
    if cfg.features:
        shapes["conv_before_upsample"] = {"0": conv_shapes(width, features, 3, dtype)}
        shapes["conv_last"] = conv_shapes(features, 3, 3, dtype)
    return shapes


def dat(params: Params, cfg: DATConfig, pictures: Array, kernels: Kernels = XLA) -> Array:
    """Pictures [B, H, W, 3] in 0..1 -> [B, H * scale, W * scale, 3] float32, not clipped.

    The sides have to be multiples of `cfg.multiple`.
    """
    mean = jnp.array(MEAN)
    x = conv(params["conv_first"], (pictures - mean).astype(params["conv_first"]["weight"].dtype))
    y = layer_norm(params["before_RG"]["1"], x)
    for i, depth in enumerate(cfg.depths):
        group, before = params["layers"][str(i)], y
        for j in range(depth):
            shifted = j % 4 == 0 if i % 2 else j % 4 == 2
            y = _block(group["blocks"][str(j)], y, cfg.heads[i], cfg.split, shifted, bool(j % 2))
        y = before + _last(group["conv"], y, cfg, kernels)
    x = x + _last(params["conv_after_body"], layer_norm(params["norm"], y), cfg, kernels)
    if not cfg.features:
        return shuffle(last_conv(params["upsample"]["0"], x), cfg.scale) + mean
    x = jax.nn.leaky_relu(conv(params["conv_before_upsample"]["0"], x, kernels=kernels), 0.01)
    for i, factor in enumerate(cfg.factors):
        x = shuffle(conv(params["upsample"][str(2 * i)], x, kernels=kernels), factor)
    return last_conv(params["conv_last"], x) + mean


def _last(p: Params, x: Array, cfg: DATConfig, kernels: Kernels) -> Array:
    if not cfg.bottlenecks:
        return conv(p, x, kernels=kernels)
    for name in ("0", "2"):
        x = jax.nn.leaky_relu(conv(p[name], x, kernels=kernels), 0.2)
    return conv(p["4"], x, kernels=kernels)


# jitted, so that blocks of the same kind are traced once
@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _block(p: Params, x: Array, heads: int, split: tuple[int, int], shifted: bool, of_channels: bool) -> Array:
    """Attention and a feed-forward layer, each beside a shortcut."""
    normed = layer_norm(p["norm1"], x)
    if of_channels:
        x = x + _channel_attention(p["attn"], normed, heads)
    else:
        x = x + _spatial_attention(p["attn"], normed, heads, split, shifted)
    y, gate = jnp.split(gelu(linear(p["ffn"]["fc1"], layer_norm(p["norm2"], x))), 2, axis=-1)
    gate = _depthwise(p["ffn"]["sg"]["conv"], layer_norm(p["ffn"]["sg"]["norm"], gate))
    return x + linear(p["ffn"]["fc2"], y * gate)


def _spatial_attention(p: Params, x: Array, heads: int, split: tuple[int, int], shifted: bool) -> Array:
    """Half of the channels attend within windows of `split`, half within such that lie on their side."""
    parts = jnp.stack(jnp.split(linear(p["qkv"], x), 3, axis=-1))  # [3, B, H, W, C]
    moved = (split[0] // 2, split[1] // 2) if shifted else (0, 0)
    upright, lying = jnp.split(parts, 2, axis=-1)
    biases = [p["attns"][str(i)]["pos"] for i in range(2)]
    made = [
        _windows(biases[0], upright, heads // 2, split, moved),
        _windows(biases[1], lying, heads // 2, (split[1], split[0]), (moved[1], moved[0])),
    ]
    attended = jnp.concatenate(made, axis=-1)
    convolved = _convolved(p, parts[2])
    attended, convolved = (
        attended * jax.nn.sigmoid(_of_channels(p, convolved)),
        convolved * jax.nn.sigmoid(_of_places(p, attended)),
    )
    return linear(p["proj"], attended + convolved)


def _windows(p: Params, qkv: Array, heads: int, window: tuple[int, int], moved: tuple[int, int]) -> Array:
    """Attention [3, B, H, W, C] -> [B, H, W, C] within windows, which are moved by so many pixels."""
    _, b, h, w, c = qkv.shape
    rows, columns = window
    size = rows * columns
    qkv = jnp.roll(qkv, (-moved[0], -moved[1]), (2, 3))
    qkv = qkv.reshape(3, b, h // rows, rows, w // columns, columns, heads, c // heads)
    q, k, v = qkv.transpose(0, 1, 2, 4, 6, 3, 5, 7).reshape(3, b, -1, heads, size, c // heads)
    scores = jnp.einsum("bnhqc,bnhkc->bnhqk", q * (c // heads) ** -0.5, k).astype(jnp.float32)
    scores = scores + _position_bias(p, window)
    if any(moved):
        regions = jnp.asarray(_regions(h, w, window, moved))
        apart = regions[:, :, None] != regions[:, None, :]
        scores = scores + jnp.where(apart, HIDDEN, 0.0)[:, None]
    y = jnp.einsum("bnhqk,bnhkc->bnhqc", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
    y = y.reshape(b, h // rows, w // columns, heads, rows, columns, c // heads).transpose(0, 1, 4, 2, 5, 3, 6)
    return jnp.roll(y.reshape(b, h, w, c), moved, (1, 2))


def _position_bias(p: Params, window: tuple[int, int]) -> Array:
    """Return what is added to scores for where two pixels of a window lie, [heads, N, N], made by a small network."""
    rows, columns = window
    distances = np.stack(np.meshgrid(np.arange(1 - rows, rows), np.arange(1 - columns, columns), indexing="ij"), -1)
    x = linear(p["pos_proj"], jnp.asarray(distances.reshape(-1, 2), p["pos_proj"]["weight"].dtype))
    for i in (1, 2, 3):
        x = linear(p[f"pos{i}"]["2"], jax.nn.relu(layer_norm(p[f"pos{i}"]["0"], x)))
    y, z = (each.reshape(-1) for each in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    pairs = (y[:, None] - y + rows - 1) * (2 * columns - 1) + z[:, None] - z + columns - 1
    return x.astype(jnp.float32)[pairs].transpose(2, 0, 1)


def _regions(h: int, w: int, window: tuple[int, int], moved: tuple[int, int]) -> np.ndarray:
    """Return the region of each pixel of each window, [windows, N]: moving brings together what lay apart."""
    labels = [
        (np.arange(side) >= side - step) * 1 + (np.arange(side) >= side - shift)
        for side, step, shift in zip((h, w), window, moved, strict=True)
    ]
    regions = 3 * labels[0][:, None] + labels[1]
    rows, columns = window
    return regions.reshape(h // rows, rows, w // columns, columns).transpose(0, 2, 1, 3).reshape(-1, rows * columns)


def _channel_attention(p: Params, x: Array, heads: int) -> Array:
    """Channels of a head attend to each other, by how alike they are over the whole picture."""
    b, h, w, c = x.shape
    qkv = linear(p["qkv"], x)
    q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, 3, heads, c // heads), 2, 0)
    q, k = (_of_length_one(each) for each in (q, k))
    scores = jnp.einsum("bnhc,bnhd->bhcd", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * p["temperature"].astype(jnp.float32), axis=-1).astype(v.dtype)
    attended = jnp.einsum("bhcd,bnhd->bnhc", weights, v).reshape(x.shape)
    convolved = _convolved(p, qkv[..., 2 * c :])
    attended, convolved = (
        attended * jax.nn.sigmoid(_of_places(p, convolved)),
        convolved * jax.nn.sigmoid(_of_channels(p, attended)),
    )
    return linear(p["proj"], attended + convolved)


def _of_length_one(x: Array) -> Array:
    """Divide by the norm over the second axis."""
    f = x.astype(jnp.float32)
    return (f / jnp.maximum(jnp.sqrt(jnp.square(f).sum(1, keepdims=True)), 1e-12)).astype(x.dtype)


def _convolved(p: Params, values: Array) -> Array:
    return gelu(_batch_norm(p["dwconv"]["1"], _depthwise(p["dwconv"]["0"], values)))


def _of_channels(p: Params, x: Array) -> Array:
    """[B, H, W, C] -> [B, 1, 1, C]."""
    own = p["channel_interaction"]
    mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
    return linear(own["4"], gelu(_batch_norm(own["2"], linear(own["1"], mean))))


def _of_places(p: Params, x: Array) -> Array:
    """[B, H, W, C] -> [B, H, W, 1]."""
    own = p["spatial_interaction"]
    return linear(own["3"], gelu(_batch_norm(own["1"], linear(own["0"], x))))


def _batch_norm(p: Params, x: Array) -> Array:
    """Normalise each channel by the statistics of training (Ioffe & Szegedy 2015, arXiv:1502.03167)."""
    scale = p["weight"].astype(jnp.float32) * lax.rsqrt(p["running_var"].astype(jnp.float32) + BATCH_NORM_EPS)
    shift = p["bias"].astype(jnp.float32) - p["running_mean"].astype(jnp.float32) * scale
    return (x.astype(jnp.float32) * scale + shift).astype(x.dtype)


def _depthwise(p: Params, x: Array) -> Array:
    """A 3x3 convolution of each channel alone; nine products fuse into one loop, where XLA's convolution is slow."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = (padded[:, i : i + h, j : j + w] * p["weight"][i, j, 0] for i in range(3) for j in range(3))
    return jnp.asarray(sum(taps, p["bias"]))
