"""ControlNets in programs: their parameters, and what they are told of each image of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.config import ControlNetConfig
from jaxl.nn.controlnet import controlnet_shapes
from jaxl.nn.layers import Params
from jaxl.nn.unet import unet_context
from jaxl.run.sharding import place_parameters
from jaxl.run.target import Leaf, Target
from jaxl.weights.winograd import with_winograd_shapes


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A ControlNet that was loaded: what it is called, and its parameters on the devices."""

    name: str
    source: str
    config: ControlNetConfig
    params: Params


class ControlNets(dict[str, ControlNet]):
    """ControlNets by name. Those that come with a model, `own`, are added by `load` when they are asked for."""

    def __init__(self, own: Mapping[str, Path], load: Callable[[str], object]):
        super().__init__()
        self.own = own
        self._load = load

    def __missing__(self, name: str) -> ControlNet:
        if name not in self.own:
            raise KeyError(name)
        self._load(name)
        return self[name]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Controlled:
    """What a ControlNet is told of B images, each in G branches.

    `embedded` [B, h, w, C] is what `embed_picture` makes of their pictures, or `embed_kind` in a union, which has
    `kinds` [B, E] of `embed_kinds` too. `context` [B, G, ...] is what cross-attention sees of their texts. What it adds
    to the U-Net's skips and middle, R tensors, is multiplied by `strengths` float32 [B, G, R] in the rows from `first`
    on and before `end`, int32 [B], and by 0 in all others.
    """

    embedded: Leaf
    kinds: Leaf | None
    context: Params
    strengths: Leaf
    first: Leaf
    end: Leaf

    @classmethod
    def shapes(
        cls, to: Target, cfg: ControlNetConfig, images: int, branches: int, latents: Sequence[int], texts: Leaf
    ) -> Controlled:
        """Return those for latents [B, h, w, C] and `prompt_embeds` [B * G, T, D]."""
        params = parameter_shapes(to, cfg)
        dtype = params["conv_in"]["weight"].dtype
        context = jax.eval_shape(unet_context, params, texts)
        return cls(
            embedded=to.split((*latents[:3], cfg.unet.channels[0]), dtype),
            kinds=to.split((images, cfg.unet.time_embed_dim), dtype) if cfg.kinds else None,
            context=jax.tree.map(
                lambda leaf: to.split((images, branches, *leaf.shape[1:]), leaf.dtype, branches=branches), context
            ),
            strengths=to.split((images, branches, len(cfg.residuals)), branches=branches),
            first=to.split((images,), jnp.int32),
            end=to.split((images,), jnp.int32),
        )


def parameter_shapes(to: Target, cfg: ControlNetConfig) -> Params:
    """Return the shapes of a ControlNet's parameters, with their places: as the U-Net's are."""
    shapes = controlnet_shapes(cfg, to.shapes["unet"]["conv_in"]["weight"].dtype)
    if to.model.kernels.conv == "winograd":
        shapes = with_winograd_shapes(shapes)
    return place_parameters(shapes, to.mesh, split=to.split_parameters)


def no_strengths(cfg: ControlNetConfig, branches: int) -> np.ndarray:
    """Return the strengths [G, R] of an image that has no use for a ControlNet."""
    return np.zeros((branches, len(cfg.residuals)), np.float32)
