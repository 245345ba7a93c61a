"""The U-Net's parts, as a second network that has only some of them calls them."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from evaluation import SMALL, input_shapes, small_inputs, small_params
from families import FAMILIES

from jaxl.config import UNetConfig
from jaxl.kernels import XLA
from jaxl.nn.layers import conv
from jaxl.nn.unet import Shared, down, embedding, middle, unet, unet_context, unet_shapes, up

HALF = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")


def halfway(
    params: Any, cfg: UNetConfig, x: Any, t: Any, prompt_embeds: Any, pooled: Any, time_ids: Any
) -> tuple[Shared, jax.Array, list[jax.Array]]:
    """Run the parts up to the middle, on the parameters of these parts alone."""
    half = {name: params[name] for name in HALF if name in params}
    temb = embedding(half, cfg, t, pooled, time_ids)
    shared = Shared(cfg, XLA, temb, unet_context(half, prompt_embeds))
    x, skips = down(half, shared, conv(half["conv_in"], x))
    return shared, middle(half, shared, x), skips


def test_the_parts_are_the_whole() -> None:
    @jax.jit
    def both(params: Any, x: Any, t: Any, prompt_embeds: Any, *rest: Any) -> tuple[jax.Array, jax.Array]:
        context = unet_context(params, prompt_embeds)
        shared, h, skips = halfway(params, SMALL, x, t, prompt_embeds, *rest)
        return up(params, replace(shared, context=context), h, skips), unet(params, SMALL, x, t, context, *rest)[1]

    got, wanted = both(small_params(), *small_inputs(16, 12))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("raw", FAMILIES.values(), ids=FAMILIES)
def test_each_layer_on_the_way_up_has_a_skip(raw: dict[str, Any]) -> None:
    cfg = UNetConfig.from_json(raw)
    given = unet_shapes(cfg, np.float32), *input_shapes(cfg, 24, 16)
    x, skips = jax.eval_shape(lambda p, *given: halfway(p, cfg, *given)[1:], *given)
    assert len(skips) == sum(len(depths) for depths in cfg.up)
    assert skips[0].shape == (2, 24, 16, cfg.channels[0])
    assert x.shape == skips[-1].shape
