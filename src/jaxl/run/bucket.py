"""What programs are compiled for and fed: buckets, the order of branches, and inputs, each with its shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import jax
import jax.numpy as jnp

from jaxl.config import ControlConfig, IPAdapterConfig
from jaxl.diffusion.loop import GivenNoise
from jaxl.diffusion.rows import COLUMNS, MAX_ROWS
from jaxl.nn.layers import Params
from jaxl.nn.unet import unet_context
from jaxl.run.adapters import NO_ROOM, Room, adapter_shapes, at_each_row
from jaxl.run.control_kinds import Controlled
from jaxl.run.controls import controlled_shapes
from jaxl.run.image_prompts import Prompted
from jaxl.run.model import Model
from jaxl.run.regions import Regional
from jaxl.run.target import Leaf, Target, shapes_of
from jaxl.run.tiles import Layout, Tiles

# rows of a call for which images may be given noise: more would take more memory, fewer would make more calls
GIVEN_ROWS = 4


class Branch(IntEnum):
    """An evaluation of the network for an image. Where an image has several, arrays have them in this order."""

    NEGATIVE = 0
    POSITIVE = 1
    PERTURBED = 2
    EMPTY = 3

    @property
    def reads(self) -> Branch:
        """The branch whose text the network is told: for the perturbed one, that of the positive one."""
        return Branch.POSITIVE if self is Branch.PERTURBED else self

    @property
    def side(self) -> Branch:
        """NEGATIVE or POSITIVE, whose sizes and pictures the network is told: the former for the empty text."""
        return Branch.NEGATIVE if self in (Branch.NEGATIVE, Branch.EMPTY) else Branch.POSITIVE

    @property
    def prefix(self) -> str:
        """What the names of the arguments for its text and sizes begin with; none do for the empty text."""
        return {Branch.NEGATIVE: "negative_", Branch.EMPTY: "empty_"}.get(self, "")


@dataclass(frozen=True)
class Bucket:
    """The shapes a program is compiled for.

    `guided` programs evaluate the network twice a row (arXiv:2207.12598). `chunks` is the number of 77-token parts that
    prompts have room for. `pag_layers` are the places of perturbed-attention guidance, which takes one evaluation more
    (arXiv:2403.17377); with `seg` it is smoothed-energy guidance where an image asks for that (arXiv:2408.00760);
    `perp_neg` programs, which are guided, read an empty text as well (arXiv:2304.04968); `freeu` programs filter the
    skip connections (arXiv:2309.11497). `cached` programs keep deep features for the rows that are shallow
    (arXiv:2312.00858). `shaped` programs have the guidance of `run.guidance`, and keep its momentum. `room` and
    `text_room` are what adapters may add to the U-Net and to the text encoders; they cost nothing where there is none.
    `controls` are the ControlNets and their kin that images may have, in programs that have a place for
    each. `image_prompts` are the places for pictures that cross-attention reads, by the tokens that each has room for;
    `ip_adapter` is what makes these of a picture. `regions` are the places for texts of parts of an image. `seamless`
    names the axes, x or y, along which pictures wrap around. The network sees pictures in `tiles`, if there are any.
    Rows of neither are split over devices.
    """

    batch: int
    height: int
    width: int
    guided: bool
    chunks: int = 1
    pag_layers: tuple[str, ...] = ()
    seg: bool = False
    perp_neg: bool = False
    freeu: bool = False
    cached: bool = False
    shaped: bool = False
    room: Room = NO_ROOM
    text_room: Room = NO_ROOM
    controls: tuple[ControlConfig, ...] = ()
    image_prompts: tuple[int, ...] = ()
    ip_adapter: IPAdapterConfig | None = None
    regions: int = 0
    seamless: str = ""
    tiles: Tiles | None = None

    @property
    def order(self) -> tuple[Branch, ...]:
        """The branches of each image, in the order that arrays have them."""
        has = {Branch.NEGATIVE: self.guided, Branch.PERTURBED: bool(self.pag_layers), Branch.EMPTY: self.perp_neg}
        return tuple(branch for branch in Branch if has.get(branch, True))

    @property
    def branches(self) -> int:
        """The number of evaluations for each image."""
        return len(self.order)

    @property
    def plain(self) -> Bucket:
        """The bucket of the rows that have no guidance."""
        return replace(self, guided=False, pag_layers=(), seg=False, perp_neg=False)

    @property
    def single(self) -> Bucket:
        """The bucket of one of its images."""
        return replace(self, batch=1)

    def seen(self, model: Model) -> Model:
        """Return the model with kernels for pictures of this kind."""
        wrap = "y" in self.seamless, "x" in self.seamless
        return replace(model, kernels=replace(model.kernels, wrap=wrap))

    def parts(self, rows: int) -> int:
        """Return into how many parts the pictures may be split that have so many by their height."""
        return 1 if self.seamless or self.tiles else rows

    @property
    def size(self) -> tuple[int, int, int]:
        """The number of images, and their height and width in pixels."""
        return self.batch, self.height, self.width

    def latents_shape(self, model: Model) -> tuple[int, int, int, int]:
        """Return [B, h, w, C]."""
        factor = model.vae.factor
        return self.batch, self.height // factor, self.width // factor, model.vae.latent_channels

    def layout(self, model: Model) -> Layout | None:
        """Return where its tiles are, if there are any."""
        return self.tiles and self.tiles.layout(self.height, self.width, model.vae.factor, model.multiple)


# No field of these has a default: whoever adds one has to say its shape, and what fills it, or nothing runs.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Text:
    """Encoded texts: prompt_embeds [..., T, D], pooled [..., P]."""

    prompt_embeds: Leaf
    pooled: Leaf

    @classmethod
    def shapes(cls, to: Target) -> Text:
        """Return those of one chunk of text."""
        length, last = to.model.text_encoder_2.max_length, to.shapes["text_encoder_2"]["text_projection"]["weight"]
        return cls(
            prompt_embeds=to.whole((1, length, to.model.unet.cross_attention_dim), last.dtype),
            pooled=to.whole((1, last.shape[-1]), last.dtype),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """What the network is told about B images, each in G branches (the bucket's, in their order).

    `context` [B, G, ...] is what cross-attention sees (`unet_context`); `pooled`: [B, G, P]; `time_ids`: float32
    [B, G, 5 or 6]. `lengths` int32 [B, G], the tokens of each text, where the bucket has several chunks, else None.
    `blur`: float32 [B], how far a perturbed branch blurs its queries, 0 for the identity, where the bucket has `seg`.
    `freeu`: float32 [B, 4], s1, s2, b1 and b2, where the bucket has it.
    `inpaint`: float32 [B, h, w, 5], the mask and the masked picture's latents, for models that were trained on them.
    `adapters`: what is added to the U-Net's layers (`run.adapters`), [B, ...], where the bucket has room for it.
    `controls`: what each of the bucket's controls is told. `image_prompts`, `regions`: what is read at each of its
    places for them.
    """

    context: Params
    pooled: Leaf
    time_ids: Leaf
    lengths: Leaf | None
    blur: Leaf | None
    freeu: Leaf | None
    inpaint: Leaf | None
    adapters: Params | None
    controls: tuple[Controlled, ...]
    image_prompts: tuple[Prompted, ...]
    regions: tuple[Regional, ...]

    @classmethod
    def shapes(cls, to: Target, bucket: Bucket) -> Conditioning:
        b, g, latents = bucket.batch, bucket.branches, bucket.latents_shape(to.model)
        extra = to.model.unet.in_channels - latents[-1]
        text = Text.shapes(to)
        _, length, width = text.prompt_embeds.shape
        embeds = jax.ShapeDtypeStruct((b * g, bucket.chunks * length, width), text.prompt_embeds.dtype)
        context = shapes_of(unet_context, to.shapes["unet"], embeds)
        context = jax.tree.map(lambda leaf: to.split((b, g, *leaf.shape[1:]), leaf.dtype, branches=g), context)
        lengths = to.split((b, g), jnp.int32, branches=g) if bucket.chunks > 1 else None
        return cls(
            context=context,
            pooled=to.split((b, g, *text.pooled.shape[1:]), text.pooled.dtype, branches=g),
            time_ids=to.split((b, g, to.model.time_ids), branches=g),
            lengths=lengths,
            blur=to.split((b,)) if bucket.seg else None,
            freeu=to.split((b, 4)) if bucket.freeu else None,
            inpaint=to.split((*latents[:3], extra)) if extra else None,
            adapters=adapter_shapes(to, "unet", bucket.room, at_each_row, b),
            controls=tuple(controlled_shapes(to, cfg, bucket.size, g, embeds) for cfg in bucket.controls),
            image_prompts=tuple(Prompted.shapes(to, tokens, b, g, latents) for tokens in bucket.image_prompts),
            regions=(Regional.shapes(to, context, lengths, b, latents),) * bucket.regions,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beginning:
    """What B images start from.

    `rows` [B, R, K], `first` [B] and `end` [B] are each image's table, its first row and the one that is not run any
    more; `keys` uint32 [B, 2]. The latents start as `noise_scale` [B] times noise of unit variance, drawn from the keys
    or `noise` [B, h, w, C] where its flag in `given` [B] is set, plus `picture_scale` [B] times `picture` [B, h, w, C].
    What is drawn goes a share, `variation` [B], of the way to what `variation_keys` uint32 [B, 2] draw.
    `mask` [B, h, w, 1] is 0 where the picture is kept.
    """

    rows: Leaf
    first: Leaf
    end: Leaf
    keys: Leaf
    variation_keys: Leaf
    variation: Leaf
    noise_scale: Leaf
    given: Leaf
    noise: Leaf
    picture_scale: Leaf
    picture: Leaf
    mask: Leaf

    @classmethod
    def shapes(cls, to: Target, bucket: Bucket) -> Beginning:
        b, latents = bucket.batch, bucket.latents_shape(to.model)
        return cls(
            rows=to.split((b, MAX_ROWS, len(COLUMNS))),
            first=to.split((b,), jnp.int32),
            end=to.split((b,), jnp.int32),
            keys=to.split((b, 2), jnp.uint32),
            variation_keys=to.split((b, 2), jnp.uint32),
            variation=to.split((b,)),
            noise_scale=to.split((b,)),
            given=to.split((b,), jnp.bool_),
            noise=to.split(latents),
            picture_scale=to.split((b,)),
            picture=to.split(latents),
            mask=to.split((*latents[:3], 1)),
        )


def given_shapes(to: Target, bucket: Bucket) -> GivenNoise:
    """Return the shapes of the noise that images are given for the rows of a call."""
    b, *latents = bucket.latents_shape(to.model)
    return GivenNoise(noise=to.split((b, GIVEN_ROWS, *latents)), has=to.split((b,), jnp.bool_))
