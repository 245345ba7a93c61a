"""ControlNets and their kin in programs: their parameters, and the shapes of what they are told of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.config import ControlConfig
from jaxl.nn.layers import Params
from jaxl.nn.unet import unet_context
from jaxl.run.control_kinds import Controlled, kind_of
from jaxl.run.sharding import place_parameters
from jaxl.run.target import Leaf, Target, shapes_of
from jaxl.weights.winograd import with_winograd_shapes


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A ControlNet, or one of its kin, that was loaded: what it is called, and its parameters on the devices.

    `of_model`: some of these are those of the model that it was loaded for, as a Control-LoRA's are.
    """

    name: str
    source: str
    config: ControlConfig
    params: Params
    of_model: bool = False


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


def parameter_shapes(to: Target, cfg: ControlConfig) -> Params:
    """Return the shapes of a control's parameters, with their places: as the U-Net's are."""
    shapes = kind_of(cfg).shapes(to.shapes["unet"]["conv_in"]["weight"].dtype)
    if to.model.kernels.conv == "winograd":
        shapes = with_winograd_shapes(shapes)
    return place_parameters(shapes, to.mesh, split=to.split_parameters)


def embed_shapes(to: Target, cfg: ControlConfig, height: int, width: int) -> tuple[Params, Leaf, Leaf, Leaf, Leaf]:
    """Return the shapes of what `steps.embed_control` is told."""
    return (
        parameter_shapes(to, cfg),
        to.whole((1, height, width, cfg.picture_channels), jnp.float32),
        to.whole((), jnp.int32),
        to.whole((), jnp.float32),
        to.whole((1, cfg.kinds), jnp.float32),
    )


def controlled_shapes(
    to: Target, cfg: ControlConfig, size: tuple[int, int, int], branches: int, texts: Leaf
) -> Controlled:
    """Return those of what a control is told of a batch, by its `size` (images, height, width).

    `texts` are the images' `prompt_embeds`, [B * G, T, D].
    """
    images, *pixels = size
    params, *told = embed_shapes(to, cfg, *pixels)
    embedded, kinds = shapes_of(kind_of(cfg).embed, params, *told)
    context = shapes_of(unet_context, params, texts) if kind_of(cfg).reads_texts else {}

    def of_images(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: to.split((images, *leaf.shape[1:]), leaf.dtype), tree)

    return Controlled(
        embedded=of_images(embedded),
        kinds=of_images(kinds),
        context=jax.tree.map(
            lambda leaf: to.split((images, branches, *leaf.shape[1:]), leaf.dtype, branches=branches), context
        ),
        strengths=to.split((images, branches, cfg.parts), branches=branches),
        first=to.split((images,), jnp.int32),
        end=to.split((images,), jnp.int32),
    )


def no_strengths(cfg: ControlConfig, branches: int) -> np.ndarray:
    """Return the strengths [G, R] of an image that has no use for a control."""
    return np.zeros((branches, cfg.parts), np.float32)
