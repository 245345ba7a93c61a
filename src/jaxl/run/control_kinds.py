"""Kinds of controls: what each makes of a picture, once for an image, and what it adds to the U-Net in a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import ControlConfig, ControlNetConfig, LLLiteConfig, T2IAdapterConfig
from jaxl.diffusion.loop import Row
from jaxl.kernels import Kernels, by_rows
from jaxl.nn import lllite, t2i_adapter
from jaxl.nn.added import Added
from jaxl.nn.controlnet import controlnet, controlnet_shapes, embed_kind, embed_kinds, embed_picture
from jaxl.nn.layers import Params, Shapes
from jaxl.run.target import Leaf

Config = TypeVar("Config", bound=ControlConfig)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Controlled:
    """What a control is told of B images, each in G branches.

    `embedded`, arrays [B, ...], is what its kind makes of their pictures; a union has `kinds` [B, E] of `embed_kinds`
    too. `context` [B, G, ...] is what cross-attention sees of their texts, empty in kinds that read none. The R things
    that it adds are multiplied by `strengths` float32 [B, G, R] in the rows from `first` on and before `end`, int32
    [B], and by 0 in all others.
    """

    embedded: Any
    kinds: Leaf | None
    context: Params
    strengths: Leaf
    first: Leaf
    end: Leaf

    def in_row(self, row: Row) -> Control:
        """Return what the control is told in a row, with the branches of an image beside each other."""
        branches = self.strengths.shape[1]
        inside = (self.first <= row["number"]) & (row["number"] < self.end)
        embedded, kinds = jax.tree.map(partial(jnp.repeat, repeats=branches, axis=0), (self.embedded, self.kinds))
        return Control(embedded, kinds, flat(self.context), flat(jnp.where(inside[:, None, None], self.strengths, 0.0)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Control:
    """What a control is told of E evaluations of the U-Net, [E, ...], as in `Controlled`; strengths are [E, R]."""

    embedded: Any
    kinds: Array | None
    context: Params
    strengths: Array


@dataclass(frozen=True)
class Evaluation:
    """What networks of a row are told: E evaluations, of latents [E, h, w, C], all as `unet` takes it."""

    latents: Array
    t: Array
    pooled: Array
    time_ids: Array
    lengths: Array | None
    shallow: Array | None
    kernels: Kernels


def flat(tree: Any) -> Any:
    """Return arrays [B * G, ...] of those of images and branches [B, G, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


class Kind(ABC, Generic[Config]):
    """A control of a kind, by its config."""

    reads_texts = False

    def __init__(self, cfg: Config):
        self.cfg = cfg

    @abstractmethod
    def shapes(self, dtype: DTypeLike) -> Shapes:
        """Return the parameter tree."""

    @abstractmethod
    def embed(self, params: Params, picture: Array, kind: Array, scale: Array, kinds: Array) -> tuple[Any, Any]:
        """Return what it makes of a picture [1, H, W, C] in 0..1: `embedded` and `kinds` of `Controlled`.

        The other arguments are a union's (`steps.embed_control`).
        """

    @abstractmethod
    def added(self, params: Params, told: Control, at: Evaluation) -> Added:
        """Return what it adds in a row."""


class OfControlNet(Kind[ControlNetConfig]):
    """A ControlNet, which runs in each row in which some image has a use for it."""

    reads_texts = True

    def shapes(self, dtype: DTypeLike) -> Shapes:
        return controlnet_shapes(self.cfg, dtype)

    def embed(self, params: Params, picture: Array, kind: Array, scale: Array, kinds: Array) -> tuple[Any, Any]:
        embedded = embed_picture(params, self.cfg, picture)
        if not self.cfg.kinds:
            return embedded, None
        return embed_kind(params, embedded, kind, scale), embed_kinds(params, self.cfg, kinds)

    def added(self, params: Params, told: Control, at: Evaluation) -> Added:
        """Where all images that have a use for it are shallow, only what it adds first is worked out."""
        network = partial(
            controlnet,
            params,
            self.cfg,
            at.latents,
            at.t,
            told.embedded,
            told.context,
            at.pooled,
            at.time_ids,
            lengths=at.lengths,
            kinds=told.kinds,
            kernels=at.kernels,
        )
        used = (told.strengths != 0).any(1)
        deep = used if at.shallow is None else used & ~at.shallow
        whole = jax.eval_shape(network)

        def scaled(only_first: bool) -> list[Array]:
            return [_times(told.strengths[:, i], each) for i, each in enumerate(network(only_first=only_first))]

        def none() -> list[Array]:
            return [jnp.zeros(shape.shape, shape.dtype) for shape in whole]

        def first() -> list[Array]:
            if at.shallow is None:
                return none()
            return jax.lax.cond(by_rows.anywhere(used.any()), lambda: scaled(only_first=True), none)

        *skips, middle = jax.lax.cond(by_rows.anywhere(deep.any()), lambda: scaled(only_first=False), first)
        return Added(skips, middle)


class OfT2IAdapter(Kind[T2IAdapterConfig]):
    """A T2I-Adapter, of which rows have only features to add, which shallow ones do not reach."""

    def shapes(self, dtype: DTypeLike) -> Shapes:
        return t2i_adapter.t2i_adapter_shapes(self.cfg, dtype)

    def embed(self, params: Params, picture: Array, kind: Array, scale: Array, kinds: Array) -> tuple[Any, Any]:
        return t2i_adapter.features(params, self.cfg, picture), None

    def added(self, params: Params, told: Control, at: Evaluation) -> Added:
        return Added(blocks=[_times(told.strengths[:, i], each) for i, each in enumerate(told.embedded)])


class OfLLLite(Kind[LLLiteConfig]):
    """A ControlNet-LLLite, whose small networks run in all rows: where they are not wanted, at strength 0."""

    def shapes(self, dtype: DTypeLike) -> Shapes:
        return lllite.lllite_shapes(self.cfg, dtype)

    def embed(self, params: Params, picture: Array, kind: Array, scale: Array, kinds: Array) -> tuple[Any, Any]:
        return lllite.embed_picture(params, self.cfg, picture), None

    def added(self, params: Params, told: Control, at: Evaluation) -> Added:
        return Added(inputs=lllite.nudges(params, self.cfg, told.embedded, told.strengths[:, 0]))


KINDS: Mapping[type, type[Kind[Any]]] = {
    ControlNetConfig: OfControlNet,
    T2IAdapterConfig: OfT2IAdapter,
    LLLiteConfig: OfLLLite,
}


def kind_of(cfg: ControlConfig) -> Kind[Any]:
    """Return the control of a config."""
    return KINDS[type(cfg)](cfg)


def _times(strengths: Array, added: Array) -> Array:
    """Return what is added [E, h, w, C] at strengths [E]."""
    each = strengths[:, None, None, None]
    # not by a product alone: what an image has no use for may be infinite
    return jnp.where(each == 0, 0, added * each.astype(added.dtype))
