"""ControlNets against diffusers: the networks, and the U-Net that is given what they add."""

from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from families import THIN
from torch_weights import randomize, relative_error, shape_tree, tree

from jaxl.config import ControlNetConfig, UNetConfig
from jaxl.nn.added import Added
from jaxl.nn.controlnet import controlnet, controlnet_shapes, embed_picture, residual_shapes
from jaxl.nn.unet import unet, unet_context

TOLERANCE = 2e-5
BASE = THIN["base"]
OF_UNET = ("up_block_types", "out_channels", "sample_size")
FULL: dict[str, Any] = {name: value for name, value in BASE.items() if name not in OF_UNET} | {
    "conditioning_embedding_out_channels": (16, 32, 32, 48)
}
KINDS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "mid": FULL | {"transformer_layers_per_block": [0, 0, 1]},
    "small": FULL | {"down_block_types": ["DownBlock2D"] * 3},
    "all else": FULL
    | {
        "down_block_types": ["DownBlock2D"] * 3,
        "mid_block_type": "UNetMidBlock2D",
        "controlnet_conditioning_channel_order": "bgr",
        "global_pool_conditions": True,
    },
}


def network(kind: str, seed: int = 2) -> tuple[Any, ControlNetConfig, Any]:
    """A network of diffusers with random weights, where zeros would be too, its config and its parameters."""
    reference: Any = randomize(diffusers.ControlNetModel(**KINDS[kind]), seed)
    return reference, ControlNetConfig.from_json(dict(reference.config)), tree(reference)


def torch_pictures(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(a).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("full", (18, 14)), *((kind, (16, 16)) for kind in ("mid", "all else"))],
    ids=lambda each: str(each),
)
def test_what_it_adds(kind: str, size: tuple[int, int]) -> None:
    reference, cfg, params = network(kind)
    assert shape_tree(params) == shape_tree(controlnet_shapes(cfg))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 4), np.float32)
    picture = rng.uniform(0, 1, (2, 8 * size[0], 8 * size[1], 3)).astype(np.float32)
    t = np.array([999.0, 20.5], np.float32)
    texts = rng.standard_normal((2, 7, 48), np.float32)
    pooled = rng.standard_normal((2, 24), np.float32)
    time_ids = rng.uniform(0, 1024, (2, 6)).astype(np.float32)
    own = BASE | {"sample_size": 16}
    of_unet: Any = randomize(diffusers.UNet2DConditionModel(**own), seed=1)
    told = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(time_ids)}
    with torch.no_grad():
        down, mid = reference(
            torch_pictures(x),
            torch.from_numpy(t),
            torch.from_numpy(texts),
            torch_pictures(picture),
            added_cond_kwargs=told,
            return_dict=False,
        )
        wanted = of_unet(
            torch_pictures(x),
            torch.from_numpy(t),
            torch.from_numpy(texts),
            added_cond_kwargs=told,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    @jax.jit
    def run(params: Any, unet_params: Any) -> Any:
        embedded = embed_picture(params, cfg, picture)
        told = embedded, unet_context(params, texts), pooled, time_ids
        residuals = controlnet(params, cfg, x, t, *told)
        first = controlnet(params, cfg, x, t, *told, only_first=True)
        context = unet_context(unet_params, texts)
        *skips, middle = residuals
        added = Added(skips, middle)
        out, _ = unet(unet_params, UNetConfig.from_json(BASE), x, t, context, pooled, time_ids, added=added)
        return residuals, first, out

    residuals, first, out = run(params, tree(of_unet))
    np.testing.assert_allclose(first[0], residuals[0], rtol=1e-5, atol=1e-5)
    assert [each.shape for each in first] == [each.shape for each in residuals]
    assert not any(np.any(each) for each in first[1:])
    assert [each.shape for each in residuals] == residual_shapes(cfg, residuals[0].shape)
    for got, reference_added in zip(residuals, (*down, mid), strict=True):
        added = reference_added.permute(0, 2, 3, 1).numpy()
        assert relative_error(got, np.broadcast_to(added, got.shape)) < TOLERANCE
    assert relative_error(out, wanted.permute(0, 2, 3, 1)) < TOLERANCE
