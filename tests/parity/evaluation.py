"""The U-Net called as diffusers' is: with the texts' embeddings, whose keys and values are made on the way."""

from typing import Any

import jax

from jaxl.config import UNetConfig
from jaxl.nn.unet import unet, unet_context


def whole_unet(
    params: Any, cfg: UNetConfig, x: Any, t: Any, prompt_embeds: Any, pooled: Any, time_ids: Any, **options: Any
) -> jax.Array:
    return unet(params, cfg, x, t, unet_context(params, prompt_embeds), pooled, time_ids, **options)[0]
