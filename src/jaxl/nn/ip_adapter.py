"""IP-Adapter: a picture as tokens, which the U-Net's cross-attention reads beside those of the text.

Ye et al. 2023, arXiv:2308.06721, section 3.2; https://github.com/tencent-ailab/IP-Adapter. The tokens are made of the
picture's embedding by one linear layer, or, in Plus, of all its hidden states by a resampler (Alayrac et al. 2022,
Flamingo, arXiv:2204.14198, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import IPAdapterConfig
from jaxl.kernels import XLA, Kernels
from jaxl.kernels.attention import attention
from jaxl.nn.layers import Params, Shapes, gelu, layer_norm, linear, linear_shapes, norm_shapes, numbered


def image_projection_shapes(cfg: IPAdapterConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of what makes tokens of what the encoder says of a picture."""
    resampler = cfg.resampler
    if resampler is None:
        return {
            "proj": linear_shapes(cfg.encoder.projection_dim, cfg.tokens * cfg.token_width, dtype),
            "norm": norm_shapes(cfg.token_width, dtype),
        }
    width = resampler.width

    def plain(inputs: int, outputs: int) -> Shapes:
        return linear_shapes(inputs, outputs, dtype, bias=False)

    layer = {
        "0": {
            "norm1": norm_shapes(width, dtype),
            "norm2": norm_shapes(width, dtype),
            "to_q": plain(width, width),
            "to_kv": plain(width, 2 * width),
            "to_out": plain(width, width),
        },
        "1": {
            "0": norm_shapes(width, dtype),
            "1": plain(width, resampler.mlp_width),
            "3": plain(resampler.mlp_width, width),
        },
    }
    return {
        "latents": jax.ShapeDtypeStruct((1, cfg.tokens, width), dtype),
        "proj_in": linear_shapes(cfg.encoder.width, width, dtype),
        "layers": numbered([layer] * resampler.layers),
        "proj_out": linear_shapes(width, cfg.token_width, dtype),
        "norm_out": norm_shapes(cfg.token_width, dtype),
    }


def image_tokens(
    params: Params, cfg: IPAdapterConfig, embedding: Array, hidden: Array, kernels: Kernels = XLA
) -> Array:
    """Embeddings [B, P] and hidden states [B, S, D] of pictures, as of `clip_vision` -> tokens [B, tokens, width]."""
    resampler = cfg.resampler
    if resampler is None:
        tokens = linear(params["proj"], embedding).reshape(-1, cfg.tokens, cfg.token_width)
        return layer_norm(params["norm"], tokens)
    seen = linear(params["proj_in"], hidden)
    x = jnp.broadcast_to(params["latents"], (len(hidden), cfg.tokens, resampler.width))
    for i in range(resampler.layers):
        attends, mlp = params["layers"][str(i)]["0"], params["layers"][str(i)]["1"]
        own = layer_norm(attends["norm2"], x)
        both = jnp.concatenate([layer_norm(attends["norm1"], seen), own], axis=1)
        k, v = jnp.split(linear(attends["to_kv"], both), 2, axis=-1)
        q = linear(attends["to_q"], own)
        x = x + linear(attends["to_out"], attention(q, k, v, resampler.heads, kernels=kernels))
        x = x + linear(mlp["3"], gelu(linear(mlp["1"], layer_norm(mlp["0"], x))))
    return layer_norm(params["norm_out"], linear(params["proj_out"], x))


def image_context_shapes(unet: Params, token_width: int, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The tree of what makes keys and values of the tokens: the parts of a U-Net's tree that `unet_context` reads."""
    tree: Shapes = {}
    for name, p in unet.items():
        if name == "attn2":
            width = p["to_q"]["weight"].shape[1]
            tree[name] = {of: linear_shapes(token_width, width, dtype, bias=False) for of in ("to_k", "to_v")}
        elif isinstance(p, Mapping) and (below := image_context_shapes(p, token_width, dtype)):
            tree[name] = below
    return tree
