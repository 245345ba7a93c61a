"""A small U-Net with random weights, called as diffusers' is: keys and values of the texts are made on the way."""

from typing import Any

import jax
import numpy as np
from families import BASE

from jaxl.config import UNetConfig
from jaxl.nn.unet import unet, unet_context, unet_shapes

SMALL_UNET: dict[str, Any] = BASE | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 64],
    "attention_head_dim": [1, 2],
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
}
SMALL = UNetConfig.from_json(SMALL_UNET)


def small_params() -> Any:
    rng = np.random.default_rng(0)

    def weights(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.standard_normal(shape.shape, np.float32) / np.sqrt(np.prod(shape.shape[:-1]))

    return jax.tree.map(weights, unet_shapes(SMALL))


def small_inputs(height: int, width: int) -> tuple[np.ndarray, ...]:
    """Three rows: latents, timesteps, prompt_embeds, pooled, time_ids."""
    rng = np.random.default_rng(1)
    return (
        rng.standard_normal((3, height, width, 4), np.float32),
        np.array([999.0, 20.5, 500.0], np.float32),
        rng.standard_normal((3, 10, 48), np.float32),
        rng.standard_normal((3, 24), np.float32),
        rng.uniform(0, 1024, (3, 6)).astype(np.float32),
    )


def input_shapes(cfg: UNetConfig, height: int, width: int) -> list[jax.ShapeDtypeStruct]:
    """Two rows of any family's inputs: latents, timesteps, prompt_embeds, pooled, time_ids."""
    # the pooled text and the sizes share the projection's input
    sizes = 5 if cfg.projection_input_dim % cfg.addition_time_embed_dim == 5 else 6
    pooled = cfg.projection_input_dim - sizes * cfg.addition_time_embed_dim
    shapes = [(2, height, width, cfg.in_channels), (2,), (2, 7, cfg.cross_attention_dim), (2, pooled), (2, sizes)]
    return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]


def whole_unet(
    params: Any, cfg: UNetConfig, x: Any, t: Any, prompt_embeds: Any, pooled: Any, time_ids: Any, **options: Any
) -> jax.Array:
    return unet(params, cfg, x, t, unet_context(params, prompt_embeds), pooled, time_ids, **options)[0]
