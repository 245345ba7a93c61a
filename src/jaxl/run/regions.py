"""Regions in programs: what cross-attention reads in parts of images, in place of their own texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxl.nn.layers import Params
from jaxl.nn.unet import RegionContext, transformer_sizes
from jaxl.run.target import Leaf, Target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regional:
    """What B images, each in G branches, read at one of their places for regions.

    `context` [B, G, ...] are keys and values of its texts, `lengths` int32 [B, G] their tokens, if the image's own text
    has such. `shares` float32 [B, h, w] are what it has of each place, for each size of features.
    """

    context: Params
    lengths: Leaf | None
    shares: tuple[Leaf, ...]

    @classmethod
    def shapes(cls, to: Target, context: Params, lengths: Leaf | None, images: int, latents: Sequence[int]) -> Regional:
        """Return those for latents [B, h, w, C]; `context` and `lengths` are those of the images' own texts."""
        sizes = transformer_sizes(to.model.unet, *latents[1:3])
        return cls(context, lengths, tuple(to.split((images, *size)) for size in sizes))

    def told(self, branches: int) -> RegionContext:
        """Return what the U-Net is told, with the branches of an image beside each other."""
        context, lengths = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (self.context, self.lengths))
        return RegionContext(context, lengths, tuple(jnp.repeat(each, branches, axis=0) for each in self.shares))
