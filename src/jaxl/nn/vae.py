"""The autoencoder: images to latents and back (Rombach et al. 2022, arXiv:2112.10752; diffusers `AutoencoderKL`)."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import VAEConfig
from jaxl.kernels import XLA, Kernels, by_rows
from jaxl.kernels.attention import attention
from jaxl.kernels.group_norm import group_norm
from jaxl.nn.layers import (
    Params,
    Shapes,
    conv,
    conv_shapes,
    linear,
    linear_shapes,
    norm_shapes,
    numbered,
    resnet,
    resnet_shapes,
    upsampled_conv,
)

EPS = 1e-6


def vae_shapes(cfg: VAEConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of the encoder and the decoder."""
    res = partial(resnet_shapes, dtype=dtype)
    channels, latent = cfg.channels, cfg.latent_channels
    widest = channels[-1]

    def side(widths: tuple[int, ...], layers: int, sampler: str) -> list[Shapes]:
        blocks, before = [], widths[0]
        for i, width in enumerate(widths):
            block: Shapes = {"resnets": numbered([res(width if j else before, width) for j in range(layers)])}
            if i < len(widths) - 1:
                block[sampler] = {"0": {"conv": conv_shapes(width, width, 3, dtype)}}
            blocks.append(block)
            before = width
        return blocks

    mid: Shapes = {"resnets": numbered([res(widest, widest)] * 2)}
    if cfg.mid_attention:
        square = partial(linear_shapes, widest, widest, dtype)
        mid["attentions"] = {
            "0": {
                "group_norm": norm_shapes(widest, dtype),
                **{name: square() for name in ("to_q", "to_k", "to_v")},
                "to_out": {"0": square()},
            }
        }
    shapes: Shapes = {
        "encoder": {
            "conv_in": conv_shapes(cfg.in_channels, channels[0], 3, dtype),
            "down_blocks": numbered(side(channels, cfg.layers_per_block, "downsamplers")),
            "mid_block": mid,
            "conv_norm_out": norm_shapes(widest, dtype),
            "conv_out": conv_shapes(widest, 2 * latent, 3, dtype),
        },
        "decoder": {
            "conv_in": conv_shapes(latent, widest, 3, dtype),
            "mid_block": mid,
            "up_blocks": numbered(side(channels[::-1], cfg.layers_per_block + 1, "upsamplers")),
            "conv_norm_out": norm_shapes(channels[0], dtype),
            "conv_out": conv_shapes(channels[0], cfg.out_channels, 3, dtype),
        },
    }
    if cfg.use_quant_conv:
        shapes["quant_conv"] = conv_shapes(2 * latent, 2 * latent, 1, dtype)
    if cfg.use_post_quant_conv:
        shapes["post_quant_conv"] = conv_shapes(latent, latent, 1, dtype)
    return shapes


def to_latents(mean: Array, cfg: VAEConfig) -> Array:
    """What `encode` gives [..., C], or a sample from it -> the latents that the U-Net works on."""
    if cfg.latents_mean is None or cfg.latents_std is None:
        return mean * cfg.scaling_factor
    return (mean - jnp.array(cfg.latents_mean)) * cfg.scaling_factor / jnp.array(cfg.latents_std)


def from_latents(latents: Array, cfg: VAEConfig) -> Array:
    """The latents that the U-Net works on [..., C] -> what `decode` takes."""
    if cfg.latents_mean is None or cfg.latents_std is None:
        return latents / cfg.scaling_factor
    return latents * jnp.array(cfg.latents_std) / cfg.scaling_factor + jnp.array(cfg.latents_mean)


def encode(params: Params, cfg: VAEConfig, images: Array, kernels: Kernels = XLA) -> tuple[Array, Array]:
    """Images [B, H, W, 3] in -1..1 -> mean and log-variance of the latents' posterior, [B, H/8, W/8, 4] each, float32.

    `to_latents` of the mean is what the U-Net works on.
    """
    p = params["encoder"]
    x = conv(p["conv_in"], images.astype(p["conv_in"]["weight"].dtype), wrap=kernels.wrap)
    for i in range(len(cfg.channels)):
        block = p["down_blocks"][str(i)]
        for j in range(cfg.layers_per_block):
            x = resnet(block["resnets"][str(j)], x, cfg.norm_num_groups, EPS, kernels)
        if "downsamplers" in block:
            # its zeros are there before the layer, which diffusers and A1111 leave as they are in pictures that wrap
            x = conv(block["downsamplers"]["0"]["conv"], x, stride=2, padding=(0, 1))
    x = _middle(p["mid_block"], cfg, x, kernels)
    x = group_norm(p["conv_norm_out"], x, cfg.norm_num_groups, EPS, silu=True, kernels=kernels)
    x = conv(p["conv_out"], x, wrap=kernels.wrap)
    if cfg.use_quant_conv:
        x = linear(params["quant_conv"], x)
    mean, log_variance = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


def decode(params: Params, cfg: VAEConfig, latents: Array, kernels: Kernels = XLA) -> Array:
    """`from_latents` of the latents [B, H/8, W/8, 4] -> images [B, H, W, 3] float32, -1..1 but not clipped."""
    p = params["decoder"]
    x = latents.astype(p["conv_in"]["weight"].dtype)
    if cfg.use_post_quant_conv:
        x = linear(params["post_quant_conv"], x)
    x = _middle(p["mid_block"], cfg, conv(p["conv_in"], x, wrap=kernels.wrap), kernels)
    for i in range(len(cfg.channels)):
        block = p["up_blocks"][str(i)]
        for j in range(cfg.layers_per_block + 1):
            x = resnet(block["resnets"][str(j)], x, cfg.norm_num_groups, EPS, kernels)
        if "upsamplers" in block:
            x = upsampled_conv(block["upsamplers"]["0"]["conv"], x, 2 * x.shape[1], 2 * x.shape[2], kernels)
    x = group_norm(p["conv_norm_out"], x, cfg.norm_num_groups, EPS, silu=True, kernels=kernels)
    return conv(p["conv_out"], x, wrap=kernels.wrap).astype(jnp.float32)


def _middle(p: Params, cfg: VAEConfig, x: Array, kernels: Kernels) -> Array:
    """Residual block, attention over all positions with one head, residual block."""
    b, h, w, c = x.shape
    x = resnet(p["resnets"]["0"], x, cfg.norm_num_groups, EPS, kernels)
    if cfg.mid_attention:
        att = p["attentions"]["0"]
        y = group_norm(att["group_norm"], x, cfg.norm_num_groups, EPS, kernels=kernels).reshape(b, h * w, c)
        q, k, v = (linear(att[name], y) for name in ("to_q", "to_k", "to_v"))
        y = by_rows.self_attention(partial(attention, kernels=kernels), q, k, v, heads=1)
        x = x + linear(att["to_out"]["0"], y).reshape(x.shape)
    return resnet(p["resnets"]["1"], x, cfg.norm_num_groups, EPS, kernels)
