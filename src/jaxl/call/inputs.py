"""From a plan to what the programs are fed: its pictures and texts, each encoded once."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxl.call.controls import PlannedControl, Seen, at_places
from jaxl.call.image_prompts import PlannedImagePrompt
from jaxl.call.plan import Plan, Segment
from jaxl.call.prompts import Chunk
from jaxl.call.starts import Mask, Picture
from jaxl.diffusion.noise import image_key
from jaxl.nn.clip import Replaced
from jaxl.nn.layer_kinds import adapted
from jaxl.nn.layers import Params
from jaxl.nn.unet import transformer_sizes
from jaxl.run.adapted import AdaptedNetworks
from jaxl.run.adapters import NO_ROOM, adapter_arrays, adapter_shapes, at_each_row, at_each_text
from jaxl.run.bucket import Beginning, Branch, Bucket, Conditioning, Text
from jaxl.run.control_kinds import Controlled, kind_of
from jaxl.run.controls import ControlNet, no_strengths
from jaxl.run.embeddings import Embeddings
from jaxl.run.image_prompts import CONTEXT, IPAdapter, Prompted
from jaxl.run.programs import (
    EMBED_CONTROL,
    EMBED_IMAGE,
    ENCODE_IMAGE,
    ENCODE_TEXT,
    GATHER,
    GATHER_CONTROL,
    GATHER_IMAGES,
    NEUTRAL,
    Programs,
)
from jaxl.run.regions import Regional
from jaxl.weights.adapters.changes import NETWORKS
from jaxl.weights.adapters.combined import AdapterSet, of_text

OfBranches = dict[Branch, list[Chunk] | None]

NO_FREEU = np.ones(4, np.float32)  # what leaves the skip connections as they are


class Given(NamedTuple):
    """What a batch was given, as latents: picture [B, h, w, C], mask [B, h, w, 1], and what inpainting networks see."""

    picture: np.ndarray | None = None
    mask: np.ndarray | None = None
    inpaint: np.ndarray | None = None


class Encoder:
    """Encodes the texts and pictures of one call, each once. `embeddings` has those of earlier calls.

    `networks` knows the parameters with adapters.
    """

    def __init__(self, programs: Programs, params: Params, embeddings: Embeddings, networks: AdaptedNetworks):
        self.programs = programs
        self.params = params
        self.embeddings = embeddings
        self.networks = networks
        self._texts: dict[Hashable, Text] = {}
        self._encoders: dict[Hashable, Params] = {}
        self._pictures: dict[Picture | Mask, np.ndarray] = {}
        self._seen: dict[tuple[Seen, ...], tuple[Any, Any]] = {}  # images may share them

    def text(self, chunk: Chunk, skip: int, adapters: AdapterSet, bucket: Bucket) -> Text:
        """A chunk of text, without the last `skip` layers of the encoders, which have some adapters."""
        own = of_text(adapters)
        names = tuple((adapter.identity, strength) for adapter, strength in own)
        key = (skip, names, *(array.tobytes() for arrays in chunk.values() for array in arrays))
        if key not in self._texts:
            bucket = bucket if own else replace(bucket, text_room=NO_ROOM)
            run = self.programs.get(ENCODE_TEXT, bucket)
            encoders = {name: self.encoder(name, own, bucket) for name in chunk}
            ids, weights = ({name: arrays[i] for name, arrays in chunk.items()} for i in (0, 1))
            replaced = {name: self._replaced(name, *arrays[2:]) for name, arrays in chunk.items()}
            self._texts[key] = self.embeddings.get(key, lambda: run(encoders, ids, weights, np.int32(skip), replaced))
        return self._texts[key]

    def emphasised(
        self, chunk: Chunk, skip: int, adapters: AdapterSet, bucket: Bucket, emphasis: str, empty: Chunk
    ) -> Text:
        """A chunk of text whose weights do what an `emphasis` says: see `Conventions`.

        The program for texts knows the first kind; others are computed here of texts without weights.
        """
        weights = {name: arrays[1] for name, arrays in chunk.items()}
        if emphasis == "original" or all((each == 1).all() for each in weights.values()):
            return self.text(chunk, skip, adapters, bucket)
        unweighted = {name: (ids, np.ones_like(own), *more) for name, (ids, own, *more) in chunk.items()}
        plain = self.text(cast(Chunk, unweighted), skip, adapters, bucket)
        if emphasis == "ignore":
            return plain
        widths = {name: cfg.width for name, cfg in self.programs.target.model.text_encoders.items()}
        scale = np.concatenate([np.repeat(weights[name][..., None], width, -1) for name, width in widths.items()], -1)
        embeds, start = np.asarray(plain.prompt_embeds), 0.0
        if emphasis == "comfyui":
            start = np.asarray(self.text(empty, skip, adapters, bucket).prompt_embeds, np.float32)
        moved = start + (embeds.astype(np.float32) - start) * scale
        return replace(plain, prompt_embeds=moved.astype(embeds.dtype))

    def encoder(self, name: str, adapters: AdapterSet, bucket: Bucket) -> Params:
        """The parameters of a text encoder with adapters."""
        if (name, adapters) not in self._encoders:
            network = self.networks.network(self.params, adapters, name)
            shapes = adapter_shapes(self.programs.target, name, bucket.text_room)
            forms = self.networks.forms(self.params, adapters, name) if shapes else {}
            self._encoders[name, adapters] = adapted(network, adapter_arrays(shapes, [forms]))
        return self._encoders[name, adapters]

    def _replaced(self, encoder: str, places: np.ndarray, vectors: np.ndarray) -> Replaced:
        """Vectors [n, width] at places [1, T]; where there are none, what the devices have already."""
        if not places.any():
            return self.programs.nothing_replaced[encoder]
        at = np.zeros((*places.shape, vectors.shape[-1]), np.float32)
        at[places] = vectors
        return Replaced(at, places)

    def latents(self, of: Picture | Mask, pixels: np.ndarray, bucket: Bucket) -> np.ndarray:
        """The latents [1, h, w, C] of pixels [1, H, W, 3] that a picture or mask has."""
        if of not in self._pictures:
            self._pictures[of] = np.asarray(self.programs.get(ENCODE_IMAGE, bucket)(self.params["vae"], pixels))
        return self._pictures[of]

    def embedded(self, control: PlannedControl, bucket: Bucket) -> tuple[Any, Any]:
        """What a control makes of its pictures, `embedded` [1, ...] and `kinds` [1, E] of `Controlled`."""
        if control.seen not in self._seen:
            network, kinds = control.network, None
            run = self.programs.get(EMBED_CONTROL, replace(bucket, controls=(network.config,)))
            parts = []
            for each, scale in zip(control.seen, control.scales, strict=True):
                pixels = each.pixels(bucket.width, bucket.height)
                kind = np.int32(each.control.kind or 0)
                part, kinds = run(network.params, pixels, kind, np.float32(scale), control.kinds)
                parts.append(jax.tree.map(np.asarray, part))
            whole = jax.tree.map(lambda first, *more: sum(more, first), *parts)
            self._seen[control.seen] = whole, jax.tree.map(np.asarray, kinds)
        return self._seen[control.seen]

    def tokens(self, adapter: IPAdapter, pixels: np.ndarray | None) -> np.ndarray:
        """The tokens [1, T, D] that an IP-Adapter makes of a picture [1, S, S, 3]; None is for the negative branch."""

        def encode() -> np.ndarray:
            cfg, side = adapter.config, adapter.config.encoder.image_size
            run = self.programs.get(EMBED_IMAGE, replace(NEUTRAL, ip_adapter=cfg))
            params = {name: own for name, own in adapter.params.items() if name != CONTEXT}
            seen = np.zeros((1, side, side, 3), np.float32) if pixels is None else pixels
            return np.asarray(run(params, seen, np.bool_(pixels is not None)))

        # weakly, so that an adapter that was removed leaves the memory
        key = (weakref.ref(adapter), None if pixels is None else hashlib.sha256(pixels.tobytes()).digest())
        return self.embeddings.get(key, encode)


class Inputs:
    """What the programs are fed for a plan of one round, or for each of its rounds or images.

    The last image again fills the bucket, here as everywhere.
    """

    def __init__(self, plan: Plan, encoder: Encoder):
        self.plan = plan
        self.encoder = encoder
        self.programs = encoder.programs

    def by_round(self) -> Iterator[Inputs]:
        return (Inputs(part, self.encoder) for part in self.plan.by_round())

    def by_image(self) -> Iterator[Inputs]:
        return (Inputs(part, self.encoder) for part in self.plan.by_image())

    def begun_with(self, picture: Picture) -> Inputs:
        """The same for another start, of its one image."""
        return Inputs(replace(self.plan, pictures=[picture]), self.encoder)

    @cached_property
    def given(self) -> Given:
        """What the images start from."""
        plan = self.plan
        if plan.pictures is None:
            return Given()

        def latents(of: Picture | Mask, pixels: np.ndarray) -> np.ndarray:
            return self.encoder.latents(of, pixels, plan.bucket)

        pictures = [plan.pictures[i] for i in plan.filled]
        picture = np.concatenate([p.array if p.encoded else latents(p, p.array) for p in pictures])
        masks = [p.mask for p in pictures if p.mask]
        if not masks:
            return Given(picture)
        mask = np.stack([m.latents for m in masks])
        if not self.programs.target.model.inpaints:
            return Given(picture, mask)
        masked = np.concatenate([latents(m, m.masked) for m in masks])
        return Given(picture, inpaint=np.concatenate([mask, masked], axis=-1))

    def prepare(self) -> None:
        """Work out ahead of time what the adapters of all images add, and change, in each network."""
        networks, params = self.encoder.networks, self.encoder.params
        for own in dict.fromkeys(own for version in self.plan.adapters for own in version if own):
            for name in NETWORKS:
                networks.forms(params, own if name == "unet" else of_text(own), name)
                networks.network(params, own if name == "unet" else of_text(own), name)

    def network(self, segment: Segment) -> Params:
        """The parameters of the U-Net with what the adapters of all images change in them before programs run."""
        return self.encoder.networks.network(self.encoder.params, self.plan.adapters[segment.version][0], "unet")

    def beginning(self) -> Beginning:
        """What `start` is told of the plan's bucket."""
        plan, given = self.plan, self.given
        size, order = plan.bucket.batch, plan.filled
        shape = plan.bucket.latents_shape(self.programs.target.model)
        return Beginning(
            rows=plan.rows[order],
            first=np.full(size, plan.first, np.int32),
            # what fills the bucket has ended, so that no device need work on it
            end=np.where(np.arange(size) < plan.batch, plan.first + plan.count, 0).astype(np.int32),
            keys=np.stack([image_key(plan.seeds[i]) for i in order]),
            variation_keys=np.stack([image_key(plan.variation_seeds[i]) for i in order]),
            variation=np.full(size, plan.variation_strength, np.float32),
            noise_scale=np.full(size, plan.noise_scale, np.float32),
            given=np.full(size, plan.noise is not None),
            noise=np.zeros(shape, np.float32) if plan.noise is None else plan.noise[order],
            picture_scale=np.full(size, plan.picture_scale, np.float32),
            picture=np.zeros(shape, np.float32) if given.picture is None else given.picture,
            mask=np.ones((*shape[:3], 1), np.float32) if given.mask is None else given.mask,
        )

    def conditionings(self) -> list[Conditioning]:
        """What the network is told in each segment; those that differ in their rows alone share it."""
        plan = self.plan
        kinds = {(plan.bucket_of(segment), segment.version): segment for segment in plan.segments}
        made = {kind: self.conditioning(segment, kind[0]) for kind, segment in kinds.items()}
        return [made[plan.bucket_of(segment), segment.version] for segment in plan.segments]

    def conditioning(
        self, segment: Segment, bucket: Bucket, networks: Sequence[ControlNet] | None = None
    ) -> Conditioning:
        """What the network is told in a segment, in a bucket that has room for all of it.

        `networks` are the bucket's ControlNets, if they are not the plan's. Encodes each chunk of text once, then
        gathers the batch on the devices.
        """
        plan, zeros = self.plan, self.programs.zero_text()

        def encoded(text: list[Chunk] | None, image: int, branch: Branch) -> list[Text]:
            skip = plan.clip_skip[branch.side]
            own = plan.adapters[segment.version][image]
            if not text:
                return [zeros]
            return [self.encoder.emphasised(c, skip, own, bucket, plan.emphasis, plan.empty) for c in text]

        def batched(of_image: Callable[[int], OfBranches]) -> tuple[list[list[list[Text]]], np.ndarray | None]:
            """The texts of the batch, [image][branch][chunk], and their lengths, if the bucket has several chunks."""
            chunks = [[encoded(of_image(i)[self._read(b)], i, b) for b in bucket.order] for i in plan.filled]
            lengths = [[len(each) * zeros.prompt_embeds.shape[1] for each in own] for own in chunks]
            # what fills a text up to the bucket is not looked at
            texts = [[each + each[:1] * (bucket.chunks - len(each)) for each in own] for own in chunks]
            return texts, np.asarray(lengths, np.int32) if bucket.chunks > 1 else None

        own_texts = plan.texts[segment.version]
        texts, lengths = batched(own_texts.__getitem__)
        time_ids = np.stack([plan.time_ids[self._read(branch).side] for branch in bucket.order])
        worn = [plan.adapters[segment.version][i] for i in plan.filled]
        adapted_networks, target = self.encoder.networks, self.programs.target
        forms = (
            [adapted_networks.forms(self.encoder.params, own, "unet") for own in worn] if bucket.room != NO_ROOM else []
        )
        of_texts, of_rows = (
            adapter_arrays(adapter_shapes(target, "unet", bucket.room, among, bucket.batch), forms)
            for among in (at_each_text, at_each_row)
        )
        gather = partial(self.programs.get(GATHER, bucket), adapted(self.network(segment), of_texts))
        context, pooled = gather(texts)

        def regional(place: int) -> Regional:
            """What is read at one of the bucket's places for regions: an image without one has its own text, unseen."""
            own = [(*each, *[None] * (place + 1))[place] for each in plan.regions]
            read, its_lengths = batched(
                lambda i: own_texts[i] if (here := own[i]) is None else here.texts[segment.version]
            )
            sizes = transformer_sizes(target.model.unet, *bucket.latents_shape(target.model)[1:3])
            unseen = tuple(np.zeros(size, np.float32) for size in sizes)
            shares = [unseen if (here := own[i]) is None else here.shares for i in plan.filled]
            its_context = gather(read)[0] if any(own) else context
            return Regional(its_context, its_lengths, tuple(map(np.stack, zip(*shares, strict=True))))

        return Conditioning(
            context=context,
            pooled=pooled,
            time_ids=np.broadcast_to(time_ids, (bucket.batch, *time_ids.shape)),
            lengths=lengths,
            blur=plan.blur[plan.filled] if bucket.seg else None,
            freeu=np.broadcast_to(NO_FREEU if plan.freeu is None else plan.freeu, (bucket.batch, 4))
            if bucket.freeu
            else None,
            inpaint=self.given.inpaint,
            adapters=of_rows,
            controls=self._controls(bucket, plan.networks if networks is None else networks, texts),
            image_prompts=tuple(self._image_prompts(bucket, place) for place in range(len(bucket.image_prompts))),
            regions=tuple(map(regional, range(bucket.regions))),
        )

    def _read(self, branch: Branch) -> Branch:
        """The branch whose text and pictures a branch is told."""
        # an image without guidance, in a bucket that has room for it, is told the same in all branches
        return branch.reads if branch.reads in self.plan.bucket.order else Branch.POSITIVE

    def _image_prompts(self, bucket: Bucket, place: int) -> Prompted:
        """What cross-attention reads at one of the bucket's places for pictures."""
        own = [(*self.plan.image_prompts[i], *[None] * (place + 1))[place] for i in self.plan.filled]
        some = next(filter(None, own), None)
        if some is None:
            return self.programs.not_prompted(bucket, place)
        room = bucket.image_prompts[place]

        def tokens(prompt: PlannedImagePrompt | None, branch: Branch) -> np.ndarray:
            """The tokens of an image at this place, with zeros up to the room that there is."""
            shown = (prompt or some).shown
            negative = self._read(branch).side is Branch.NEGATIVE
            each = [self.encoder.tokens(shown.adapter, None if negative else p) for p in shown.pictures]
            made = np.concatenate(each, axis=1)
            return np.pad(made, ((0, 0), (0, room - made.shape[1]), (0, 0)))

        gather = self.programs.get(GATHER_IMAGES, replace(bucket, image_prompts=(room,)))
        adapters = [(prompt or some).shown.adapter for prompt in own]
        # an image that reads nothing has another's tokens, with strengths of zero
        return Prompted(
            context=gather(
                [adapter.params[CONTEXT] for adapter in adapters],
                [[tokens(prompt, branch) for branch in bucket.order] for prompt in own],
            ),
            lengths=np.asarray([prompt.tokens if prompt else 1 for prompt in own], np.int32),
            strengths=np.stack([p.strengths if p else np.zeros_like(some.strengths) for p in own]),
            masks=tuple(np.stack([(p or some).masks[i] for p in own]) for i in range(len(some.masks))),
            first=np.asarray([prompt.first if prompt else 0 for prompt in own], np.int32),
            end=np.asarray([prompt.end if prompt else 0 for prompt in own], np.int32),
        )

    def _controls(
        self, bucket: Bucket, networks: Sequence[ControlNet], texts: list[list[list[Text]]]
    ) -> tuple[Controlled, ...]:
        """What each of the bucket's controls is told, with the texts [image][branch][chunk]."""
        at = [at_places(self.plan.controls[i], networks) for i in self.plan.filled]
        told = []
        for place, network in enumerate(networks):
            own = [controls[place] for controls in at]
            if not any(own):
                told.append(self.programs.not_controlled(bucket, place))
                continue
            shapes = self.programs.told(bucket).controls[place]
            unseen = _one((shapes.embedded, shapes.kinds))
            seen = [self.encoder.embedded(c, bucket) if c else unseen for c in own]
            embedded, kinds = jax.tree.map(lambda *each: np.concatenate(each), *seen)
            context = {}
            if kind_of(network.config).reads_texts:
                gather = self.programs.get(GATHER_CONTROL, replace(bucket, controls=(network.config,)))
                context = gather(network.params, texts)
            told.append(
                Controlled(
                    embedded=embedded,
                    kinds=kinds,
                    context=context,
                    strengths=np.stack(
                        [c.strengths(bucket.order) if c else no_strengths(network.config, bucket.branches) for c in own]
                    ),
                    first=np.asarray([c.first if c else 0 for c in own], np.int32),
                    end=np.asarray([c.end if c else 0 for c in own], np.int32),
                )
            )
        return tuple(told)


def _one(shapes: Any) -> Any:
    """Return zeros for one image, of the shapes of arguments for a batch."""
    return jax.tree.map(lambda shape: np.zeros((1, *shape.shape[1:]), shape.dtype), shapes)
