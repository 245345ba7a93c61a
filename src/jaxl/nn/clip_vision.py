"""CLIP's encoder of pictures, a vision transformer, in both sizes that IP-Adapters read: ViT-H and ViT-bigG.

Radford et al. 2021, arXiv:2103.00020, section 2.4; Dosovitskiy et al. 2021, arXiv:2010.11929.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import VisionConfig
from jaxl.kernels import XLA, Kernels
from jaxl.nn.clip import encoder_layer, encoder_layer_shapes
from jaxl.nn.layers import Params, Shapes, conv, layer_norm, linear, linear_shapes, norm_shapes, numbered


def clip_vision_shapes(cfg: VisionConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of the encoder."""
    patch = jax.ShapeDtypeStruct((cfg.patch_size, cfg.patch_size, 3, cfg.width), dtype)
    return {
        "vision_model": {
            "embeddings": {
                "class_embedding": jax.ShapeDtypeStruct((cfg.width,), dtype),
                "patch_embedding": {"weight": patch},
                "position_embedding": {"weight": jax.ShapeDtypeStruct((cfg.tokens, cfg.width), dtype)},
            },
            "pre_layrnorm": norm_shapes(cfg.width, dtype),  # as its authors spelt it
            "encoder": {"layers": numbered([encoder_layer_shapes(cfg, dtype)] * cfg.layers)},
            "post_layernorm": norm_shapes(cfg.width, dtype),
        },
        "visual_projection": linear_shapes(cfg.width, cfg.projection_dim, dtype, bias=False),
    }


def clip_vision(params: Params, cfg: VisionConfig, pixels: Array, kernels: Kernels = XLA) -> tuple[Array, Array]:
    """Encode pictures [B, S, S, 3] of S = `image_size`, with CLIP's mean 0 and deviation 1.

    Returns the embedding [B, projection_dim], and the hidden states before the last layer [B, tokens, width].
    """
    vision = params["vision_model"]
    embeddings, layers = vision["embeddings"], vision["encoder"]["layers"]
    pixels = pixels.astype(embeddings["class_embedding"].dtype)
    patches = conv(embeddings["patch_embedding"], pixels, stride=cfg.patch_size, padding=(0, 0))
    patches = patches.reshape(len(pixels), -1, cfg.width)
    whole = jnp.broadcast_to(embeddings["class_embedding"], (len(pixels), 1, cfg.width))
    x = jnp.concatenate([whole, patches], axis=1) + embeddings["position_embedding"]["weight"]
    x = layer_norm(vision["pre_layrnorm"], x, cfg.norm_eps)
    for i in range(cfg.layers - 1):
        x = encoder_layer(layers[str(i)], cfg, x, kernels, causal=False)
    last = encoder_layer(layers[str(cfg.layers - 1)], cfg, x, kernels, causal=False)
    return linear(params["visual_projection"], layer_norm(vision["post_layernorm"], last[:, 0], cfg.norm_eps)), x
