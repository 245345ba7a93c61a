"""IP-Adapters in programs: their parameters, and what the U-Net is told of the pictures of each image of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxl.config import IPAdapterConfig
from jaxl.diffusion.loop import Row
from jaxl.nn.clip_vision import clip_vision_shapes
from jaxl.nn.ip_adapter import image_context_shapes, image_projection_shapes
from jaxl.nn.layers import Params
from jaxl.nn.unet import ImageContext, transformer_sizes, unet_context, unet_shapes
from jaxl.run.sharding import place_parameters
from jaxl.run.target import Leaf, Target, shapes_of

ENCODER, PROJECTION, CONTEXT = "image_encoder", "image_proj", "unet"  # the parts of an IP-Adapter


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """An IP-Adapter that was loaded: what it is called, and its parameters on the devices, by part.

    Those that have the encoder of one source share its parameters.
    """

    name: str
    source: str
    encoder_source: str
    config: IPAdapterConfig
    params: Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompted:
    """What cross-attention reads of the pictures of B images, each in G branches, beside their texts.

    `context` [B, G, ...] are keys and values of the pictures' tokens, of which `lengths` int32 [B] are real. What is
    read is multiplied by `strengths` float32 [B, L], one for each of the U-Net's transformers, and at each place by
    `masks` float32 [B, h, w], one for each size of features, in the rows from `first` on and before `end`, int32 [B].
    """

    context: Params
    lengths: Leaf
    strengths: Leaf
    masks: tuple[Leaf, ...]
    first: Leaf
    end: Leaf

    @classmethod
    def shapes(cls, to: Target, tokens: int, images: int, branches: int, latents: Sequence[int]) -> Prompted:
        """Return those for latents [B, h, w, C], where a picture has room for so many tokens."""
        unet, params = to.model.unet, context_shapes(to)
        embeds = jax.ShapeDtypeStruct((images * branches, tokens, unet.cross_attention_dim), dtype_of(to))
        context = shapes_of(unet_context, params, embeds)
        return cls(
            context=jax.tree.map(
                lambda leaf: to.split((images, branches, *leaf.shape[1:]), leaf.dtype, branches=branches), context
            ),
            lengths=to.split((images,), jnp.int32),
            strengths=to.split((images, len(unet.transformers))),
            masks=tuple(to.split((images, *size)) for size in transformer_sizes(unet, *latents[1:3])),
            first=to.split((images,), jnp.int32),
            end=to.split((images,), jnp.int32),
        )

    def in_row(self, row: Row, branches: int) -> ImageContext:
        """Return what the U-Net is told in a row, with the branches of an image beside each other."""
        inside = (self.first <= row["number"]) & (row["number"] < self.end)

        def each(a: Array) -> Array:
            return jnp.repeat(a, branches, axis=0)

        return ImageContext(
            context=jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), self.context),
            lengths=each(jnp.maximum(self.lengths, 1)),  # a softmax needs one, also where nothing is read
            strengths=each(jnp.where(inside[:, None], self.strengths, 0.0)),
            masks=tuple(map(each, self.masks)),
        )


def dtype_of(to: Target) -> jnp.dtype:
    """Return the dtype that the U-Net computes in."""
    return to.shapes["unet"]["conv_in"]["weight"].dtype


def context_shapes(to: Target) -> Params:
    """Return the shapes of what makes keys and values of tokens, with their places: as the U-Net's are."""
    cfg, dtype = to.model.unet, dtype_of(to)
    shapes = image_context_shapes(unet_shapes(cfg, dtype), cfg.cross_attention_dim, dtype)
    return place_parameters(shapes, to.mesh, split=to.split_parameters)


def encoder_shapes(to: Target, cfg: IPAdapterConfig) -> Params:
    """Return the shapes of the parts that make tokens of a picture, with their places."""
    dtype = dtype_of(to)
    shapes = {ENCODER: clip_vision_shapes(cfg.encoder, dtype), PROJECTION: image_projection_shapes(cfg, dtype)}
    return place_parameters(shapes, to.mesh, split=to.split_parameters)
