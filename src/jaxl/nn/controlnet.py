"""ControlNet: a copy of the U-Net's way down that sees a picture, and adds to the U-Net's skips and middle.

Zhang et al. 2023, arXiv:2302.05543, section 3; diffusers `ControlNetModel` and `ControlNetUnionModel`.

A union is told of what kind a picture is. Its code has layers of attention between the pictures, as their authors
wrote them over the wrong axis: over the images of a batch. For one image each token sees itself alone, and that is what
is computed here, so that no image depends on its neighbours; nothing of it needs the latents or the timestep.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import ControlNetConfig
from jaxl.kernels import XLA, Kernels, by_rows
from jaxl.nn.layers import (
    Params,
    Shapes,
    conv,
    conv_shapes,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
    numbered,
)
from jaxl.nn.unet import Shared, down, embed_vector, embedding, middle, sinusoids, unet_shapes

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
        **(_union_shapes(cfg, dtype) if cfg.kinds else {}),
    }


def _union_shapes(cfg: ControlNetConfig, dtype: DTypeLike) -> Shapes:
    width, time_dim = cfg.unet.channels[0], cfg.unet.time_embed_dim
    layer = {
        "ln_1": norm_shapes(width, dtype),
        "attn": {
            "in_proj_weight": jax.ShapeDtypeStruct((width, 3 * width), dtype),
            "in_proj_bias": jax.ShapeDtypeStruct((3 * width,), dtype),
            "out_proj": linear_shapes(width, width, dtype),
        },
        "ln_2": norm_shapes(width, dtype),
        "mlp": {"c_fc": linear_shapes(width, 4 * width, dtype), "c_proj": linear_shapes(4 * width, width, dtype)},
    }
    return {
        "task_embedding": jax.ShapeDtypeStruct((width, cfg.kinds), dtype),
        "transformer_layes": numbered([layer] * cfg.fusing),  # as its authors spelt it
        "spatial_ch_projs": linear_shapes(width, width, dtype),
        "control_add_embedding": {
            "linear_1": linear_shapes(cfg.unet.addition_time_embed_dim * cfg.kinds, time_dim, dtype),
            "linear_2": linear_shapes(time_dim, time_dim, dtype),
        },
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


def embed_kind(params: Params, embedded: Array, kind: Array, scale: Array) -> Array:
    """Return what a union adds to the latents for a picture of a kind, int32 [], at a strength, float32 [].

    `embedded` [1, h, w, C] is what `embed_picture` makes of the picture.
    """
    scale = scale.astype(embedded.dtype)
    token = scale * (embedded.mean((1, 2)) + params["task_embedding"][:, kind])
    layers = params["transformer_layes"]
    for layer in (layers[str(i)] for i in range(len(layers))):
        attn, mlp = layer["attn"], layer["mlp"]
        # of the one token that it sees, itself, attention takes all
        values = layer_norm(layer["ln_1"], token) @ jnp.split(attn["in_proj_weight"], 3, axis=1)[2]
        token = token + linear(attn["out_proj"], values + jnp.split(attn["in_proj_bias"], 3)[2])
        hidden = linear(mlp["c_fc"], layer_norm(layer["ln_2"], token))
        token = token + linear(mlp["c_proj"], hidden * jax.nn.sigmoid(1.702 * hidden))
    return scale * (embedded + linear(params["spatial_ch_projs"], token)[:, None, None])


def embed_kinds(params: Params, cfg: ControlNetConfig, kinds: Array) -> Array:
    """Return what a union adds to the embedding of timesteps where there are pictures of `kinds`, 0 or 1, [B, K]."""
    told = sinusoids(kinds.reshape(-1), cfg.unet.addition_time_embed_dim).reshape(kinds.shape[0], -1)
    return embed_vector(params["control_add_embedding"], told.astype(params["task_embedding"].dtype))


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
    kinds: Array | None = None,
    only_first: bool = False,
    kernels: Kernels = XLA,
) -> list[Array]:
    """Return what is added to the U-Net's skips, in their order, and to its middle, each [B, h, w, C].

    `embedded` is what `embed_picture` makes of the pictures, `context` what `unet_context` makes of the texts with this
    network's parameters; `kinds` [B, E] is what `embed_kinds` makes in a union; all else is as in `unet`. With
    `only_first` all but the first are zeros, and cost nothing.
    """
    x = x.astype(params["conv_in"]["weight"].dtype)
    first = conv(params["conv_in"], x) + embedded
    zero_convs = [params["controlnet_down_blocks"][str(i)] for i in range(len(cfg.residuals) - 1)]
    if only_first:
        shapes = residual_shapes(cfg, first.shape)
        return [_added(cfg, zero_convs[0], first), *(jnp.zeros(shape, first.dtype) for shape in shapes[1:])]
    temb = embedding(params, cfg.unet, t, pooled, time_ids, more=kinds)
    shared = Shared(cfg.unet, kernels, temb, context, lengths)
    last, skips = down(params, shared, first)
    outs = (*skips, middle(params, shared, last))
    layers = (*zero_convs, params["controlnet_mid_block"])
    return [_added(cfg, p, out) for p, out in zip(layers, outs, strict=True)]


def _added(cfg: ControlNetConfig, p: Params, out: Array) -> Array:
    out = conv(p, out)
    return jnp.broadcast_to(by_rows.mean(out.mean((1, 2), keepdims=True)), out.shape) if cfg.pooled else out


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
