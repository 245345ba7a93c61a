"""CLIP's text encoder, in both sizes of SDXL: CLIP ViT-L and OpenCLIP ViT-bigG with its projection.

Radford et al. 2021, arXiv:2103.00020; how SDXL uses them: Podell et al. 2023, arXiv:2307.01952, section 2.1.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import TextConfig, VisionConfig
from jaxl.kernels import XLA, Kernels
from jaxl.kernels.attention import attention
from jaxl.nn.layers import Params, Shapes, layer_norm, linear, linear_shapes, norm_shapes, numbered


def clip_shapes(cfg: TextConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of one text encoder."""
    shapes: Shapes = {
        "text_model": {
            "embeddings": {
                "token_embedding": {"weight": jax.ShapeDtypeStruct((cfg.vocab_size, cfg.width), dtype)},
                "position_embedding": {"weight": jax.ShapeDtypeStruct((cfg.max_length, cfg.width), dtype)},
            },
            "encoder": {"layers": numbered([encoder_layer_shapes(cfg, dtype)] * cfg.layers)},
            "final_layer_norm": norm_shapes(cfg.width, dtype),
        }
    }
    if cfg.projection_dim is not None:
        shapes["text_projection"] = linear_shapes(cfg.width, cfg.projection_dim, dtype, bias=False)
    return shapes


def encoder_layer_shapes(cfg: TextConfig | VisionConfig, dtype: DTypeLike) -> Shapes:
    """The parameter tree of one layer."""
    square = partial(linear_shapes, cfg.width, cfg.width, dtype)
    return {
        "self_attn": {"q_proj": square(), "k_proj": square(), "v_proj": square(), "out_proj": square()},
        "layer_norm1": norm_shapes(cfg.width, dtype),
        "mlp": {
            "fc1": linear_shapes(cfg.width, cfg.mlp_width, dtype),
            "fc2": linear_shapes(cfg.mlp_width, cfg.width, dtype),
        },
        "layer_norm2": norm_shapes(cfg.width, dtype),
    }


class Replaced(NamedTuple):
    """Vectors float32 [B, T, width] in place of those of the tokens at `places` bool [B, T]."""

    vectors: Any
    places: Any


def clip(
    params: Params,
    cfg: TextConfig,
    ids: Array,
    clip_skip: Array | int = 0,
    kernels: Kernels = XLA,
    replaced: Replaced | None = None,
) -> tuple[Array, Array | None]:
    """Encode token ids [B, T] int32, some of which may have other vectors than their own (arXiv:2208.01618).

    Returns the hidden states [B, T, width] that are `clip_skip` layers (traced, 0..layers-1) before the
    second-to-last one, without the final norm, and the pooled embedding [B, projection_dim] at the end token, None
    without a projection.
    """
    text = params["text_model"]
    embeddings = text["embeddings"]
    x = embeddings["token_embedding"]["weight"][ids]
    if replaced is not None:
        x = jnp.where(replaced.places[..., None], replaced.vectors.astype(x.dtype), x)
    x = x + embeddings["position_embedding"]["weight"][: ids.shape[1]]
    states = [x]
    for i in range(cfg.layers):
        states.append(encoder_layer(text["encoder"]["layers"][str(i)], cfg, states[-1], kernels, causal=True))
    # states[-1 - n] is n layers before the last one; an index, so that clip_skip does not recompile
    hidden = jnp.stack(states)[cfg.layers - 1 - clip_skip]
    if cfg.projection_dim is None:
        return hidden, None
    end = jnp.argmax(ids if cfg.eos_token_id is None else ids == cfg.eos_token_id, axis=-1)
    last = jnp.take_along_axis(states[-1], end[:, None, None], axis=1)[:, 0]
    return hidden, linear(params["text_projection"], layer_norm(text["final_layer_norm"], last, cfg.norm_eps))


def emphasize(hidden: Array, weights: Array) -> Array:
    """Scale hidden states [B, T, D] by their tokens' weights [B, T], then restore the mean of each text.

    The emphasis that AUTOMATIC1111's web UI calls "Original" (modules/sd_emphasis.py). A row is one text, or one chunk
    of a long one, and depends on no other row. The dtype is kept; a row whose weights are all 1 comes back as it was.
    """
    before = hidden.astype(jnp.float32)
    after = before * weights.astype(jnp.float32)[..., None]
    mean = jnp.mean(after, axis=(1, 2), keepdims=True)
    # no scale brings a mean of zero back
    scale = jnp.where(mean == 0, 1, jnp.mean(before, axis=(1, 2), keepdims=True) / jnp.where(mean == 0, 1, mean))
    neutral = jnp.all(weights == 1, axis=1)[:, None, None]
    return jnp.where(neutral, hidden, (after * scale).astype(hidden.dtype))


# `jit` in a program means that the layers, which have the same shapes, are traced once, not each.
@partial(jax.jit, static_argnums=(1, 3), static_argnames="causal")
def encoder_layer(p: Params, cfg: TextConfig | VisionConfig, x: Array, kernels: Kernels, *, causal: bool) -> Array:
    """Self-attention and two linear layers, each after a norm and around a residual: [B, T, width]."""
    activation = partial(jax.nn.gelu, approximate=False) if cfg.activation == "gelu" else _quick_gelu
    h = layer_norm(p["layer_norm1"], x, cfg.norm_eps)
    q, k, v = (linear(p["self_attn"][name], h) for name in ("q_proj", "k_proj", "v_proj"))
    x = x + linear(p["self_attn"]["out_proj"], attention(q, k, v, cfg.heads, causal=causal, kernels=kernels))
    h = layer_norm(p["layer_norm2"], x, cfg.norm_eps)
    return x + linear(p["mlp"]["fc2"], activation(linear(p["mlp"]["fc1"], h)))


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)
