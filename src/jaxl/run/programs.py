"""The compiled programs of a model, one of each kind per bucket, ahead of time and cached on disk.

Five kinds make a picture: `encode_text` (a chunk of text at a time), `gather` (texts into a batch), `start` (noise and
tables into slots), `advance` (rows of the table: all the work) and `decode` (latents to pixels). `encode_image` is for
those that start from a picture, `preview` for those that are watched, `join` and `take` for those that come and go
while others run. Only shapes are compiled in; scheduler, steps, guidance, prompt and seed are arguments.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxl.config import TinyVAEConfig, VAEConfig
from jaxl.diffusion import loop
from jaxl.diffusion.loop import Row, Slots
from jaxl.diffusion.noise import initial_noise
from jaxl.diffusion.rows import COLUMNS, MAX_ROWS
from jaxl.kernels import XLA, Kernels
from jaxl.nn import tiny_vae, vae
from jaxl.nn.clip import clip, emphasize
from jaxl.nn.layers import Params
from jaxl.nn.preview import latents_to_rgb
from jaxl.nn.tiles import decode_tiled, encode_tiled
from jaxl.nn.unet import features_shape, unet, unet_context
from jaxl.run.model import Model
from jaxl.run.sharding import replicated, split_images, spread, whole, with_sharding
from jaxl.weights.quantise import layers, observing

# The programs that make a picture, those that take longest to compile first.
KINDS = ("advance", "decode", "encode_text", "gather", "start")

Leaf = Any  # an array on the devices or on the host, or the shape of one


@dataclass(frozen=True)
class Bucket:
    """The shapes a program is compiled for.

    `guided` programs evaluate the network twice a row (arXiv:2207.12598). `chunks` is the number of 77-token parts that
    prompts have room for. `pag_layers` are the places of perturbed-attention guidance, which takes one evaluation more
    (arXiv:2403.17377); `freeu` programs filter the skip connections (arXiv:2309.11497). `cached` programs keep deep
    features for the rows that are shallow (arXiv:2312.00858).
    """

    batch: int
    height: int
    width: int
    guided: bool
    chunks: int = 1
    pag_layers: tuple[str, ...] = ()
    freeu: bool = False
    cached: bool = False

    @property
    def branches(self) -> int:
        """Evaluations for each image: the negative one, the positive one, the perturbed one."""
        return 1 + self.guided + bool(self.pag_layers)

    @property
    def plain(self) -> Bucket:
        """The bucket of the rows that have no guidance."""
        return replace(self, guided=False, pag_layers=())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Text:
    """Encoded texts: prompt_embeds [..., T, D], pooled [..., P]."""

    prompt_embeds: Leaf
    pooled: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """What the network is told about B images, each in G branches (the bucket's `branches`, in that order).

    `context` [B, G, ...] is what cross-attention sees (`unet_context`); `pooled`: [B, G, P]; `time_ids`: float32
    [B, G, 5 or 6]. `lengths` int32 [B, G], the tokens of each text, where the bucket has several chunks. `rescale`:
    float32 [B], guidance_rescale. `freeu`: float32 [B, 4], s1, s2, b1 and b2.
    `inpaint`: float32 [B, h, w, 5], the mask and the masked picture's latents, for models that were trained on them.
    """

    context: Params
    pooled: Leaf
    time_ids: Leaf
    rescale: Leaf
    lengths: Leaf | None = None
    freeu: Leaf | None = None
    inpaint: Leaf | None = None


def encode_text(
    params: Params, model: Model, ids: dict[str, Array], weights: dict[str, Array], clip_skip: Array | int
) -> Text:
    """N texts, as ids and weights [N, T] for each text encoder -> their embeddings side by side.

    (Podell et al. 2023, arXiv:2307.01952, section 2.1.) The pooled embedding knows no weights.
    """
    states, pooled = [], None
    for name, cfg in model.text_encoders.items():
        hidden, pooled = clip(params[name], cfg, ids[name], clip_skip, model.kernels)
        states.append(emphasize(hidden, weights[name]))
    assert pooled is not None  # Model requires the last encoder's projection
    return Text(jnp.concatenate(states, axis=-1), pooled)


def gather(params: Params, texts: list[list[list[Text]]]) -> tuple[dict[str, Any], Array]:
    """Chunks of texts, [image][branch][chunk] -> `context` and `pooled` of `Conditioning`.

    Of the pooled embeddings, that of the first chunk.
    """

    def branch(chunks: list[Text]) -> Text:
        return Text(jnp.concatenate([chunk.prompt_embeds[0] for chunk in chunks]), chunks[0].pooled[0])

    images = [[branch(chunks) for chunks in image] for image in texts]
    flat = [text for image in images for text in image]
    # else XLA stacks a part of the features on each device, and sends all to where their images are
    text = jax.tree.map(lambda *each: whole(jnp.stack(each)), *flat)
    context = unet_context(params, text.prompt_embeds)
    return jax.tree.map(lambda a: a.reshape(len(texts), -1, *a.shape[1:]), (context, text.pooled))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beginning:
    """What B images start from.

    `rows` [B, R, K], `first` [B] and `end` [B] are each image's table, its first row and the one that is not run any
    more; `keys` uint32 [B, 2]. The latents start as `noise_scale` [B] times noise of unit variance, drawn from the keys
    or `noise` [B, h, w, C] where its flag in `given` [B] is set, plus `picture_scale` [B] times `picture` [B, h, w, C].
    `mask` [B, h, w, 1] is 0 where the picture is kept.
    """

    rows: Leaf
    first: Leaf
    end: Leaf
    keys: Leaf
    noise_scale: Leaf
    given: Leaf
    noise: Leaf
    picture_scale: Leaf
    picture: Leaf
    mask: Leaf


def start(b: Beginning) -> Slots:
    """Slots at their first row."""
    noise = jnp.where(b.given[:, None, None, None], b.noise, initial_noise(b.keys, b.noise.shape[1:]))
    slots = loop.init_slots(b.rows, b.end, b.keys, noise, b.noise_scale, b.picture, b.picture_scale, b.mask)
    return replace(slots, row=b.first)


def denoise(
    params: Params, model: Model, bucket: Bucket, cond: Conditioning, x: Array, row: Row, features: Array | None
) -> tuple[Array, Array | None]:
    """The network's output, float32, for scaled latents `x`, guided as the bucket has branches; and its features.

    These are [B, G, *features_shape] where the bucket is `cached`, else None.
    """
    b, g = cond.time_ids.shape[:2]
    if cond.inpaint is not None:
        x = jnp.concatenate([x, cond.inpaint], axis=-1)
    # an image's branches are neighbours on the batch axis, so splitting the axis over devices keeps them together
    per_branch = partial(jnp.repeat, repeats=g, axis=0)
    context, pooled, time_ids, lengths = jax.tree.map(
        lambda a: a.reshape(b * g, *a.shape[2:]), (cond.context, cond.pooled, cond.time_ids, cond.lengths)
    )
    out, deep = unet(
        params,
        model.unet,
        spread(per_branch(x)),
        per_branch(row["t"]),
        context,
        pooled,
        time_ids,
        lengths=lengths,
        guidance=per_branch(row["guidance"]) if model.unet.time_cond_proj_dim else None,
        perturbed=jnp.tile(jnp.arange(g) == g - 1, b) if bucket.pag_layers else None,
        pag_layers=bucket.pag_layers,
        freeu=None if cond.freeu is None else per_branch(cond.freeu),
        features=None if features is None else features.reshape(b * g, *features.shape[2:]),
        shallow=None if features is None else per_branch(row["shallow"] > 0),
        kernels=model.kernels,
    )
    branches = out.astype(jnp.float32).reshape(b, g, *out.shape[1:])
    guided = guide(bucket, branches, row["guidance"], row["pag"], cond.rescale)
    return guided, None if features is None else deep.reshape(features.shape)


def guide(bucket: Bucket, branches: Array, guidance: Array, pag: Array, rescale: Array) -> Array:
    """One prediction [B, h, w, C] from those of the branches [B, G, h, w, C]; the scales are [B].

    Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, equation 6), perturbed-attention guidance (Ahn et
    al. 2024, arXiv:2403.17377, equation 16), then the share `rescale` of the way back to the positive prediction's
    deviation (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    """
    guidance, pag, rescale = (a[:, None, None, None] for a in (guidance, pag, rescale))
    positive = out = branches[:, int(bucket.guided)]
    if bucket.guided:
        negative = branches[:, 0]
        out = negative + guidance * (positive - negative)
    if bucket.pag_layers:
        out = out + pag * (positive - branches[:, -1])
    if bucket.guided:
        own, wanted = (jnp.std(a, axis=(1, 2, 3), keepdims=True) for a in (out, positive))
        out = jnp.where(rescale > 0, out * (rescale * wanted / own + 1 - rescale), out)
    return out


def advance(params: Params, model: Model, bucket: Bucket, slots: Slots, cond: Conditioning, n: Array) -> Slots:
    """Run the next `n` rows (traced) of every slot, which has features if the bucket is cached."""
    return loop.advance(partial(denoise, params, model, bucket, cond), slots, n)


def join(slots: Slots, cond: Conditioning, own: tuple[Slots, Conditioning], place: Array) -> tuple[Slots, Conditioning]:
    """B images, with one more, `own` of a batch of one, at a place (int32, traced)."""
    return jax.tree.map(lambda old, new: jnp.where(_is_at(place, old), new.astype(old.dtype), old), (slots, cond), own)


def take(slots: Slots, place: Array) -> Slots:
    """The image at a place, as a batch of one."""
    # a sum with zeros rather than a slice, so that no device asks for all that the others have
    return jax.tree.map(lambda a: jnp.where(_is_at(place, a), a, 0).sum(0, dtype=a.dtype, keepdims=True), slots)


def _is_at(place: Array, a: Array) -> Array:
    return (jnp.arange(a.shape[0]) == place).reshape(-1, *[1] * (a.ndim - 1))


def observe(
    params: Params, model: Model, bucket: Bucket, slots: Slots, cond: Conditioning, largest: dict[str, Array]
) -> tuple[Slots, dict[str, Array]]:
    """Run one row; also `largest`, by layer, raised to the greatest magnitude that went into each of those layers."""
    model = replace(model, kernels=XLA)  # which has derivatives

    def run(largest: dict[str, Array]) -> tuple[Array, Slots]:
        after = loop.advance(partial(denoise, observing(params, largest), model, bucket, cond), slots, 1)
        return after.latents.sum(), after

    seen, after = jax.grad(run, has_aux=True)(largest)
    return after, jax.tree.map(jnp.maximum, seen, largest)


def encode_image(params: Params, model: Model, images: Array, tile: int | None = None) -> Array:
    """Images [B, H, W, 3] in -1..1 -> latents [B, h, w, C] float32: the mean of what the encoder says.

    With `tile`, in overlapping parts of so many pixels, as in `decode`.
    """
    cfg, kernels = model.vae, model.kernels
    if isinstance(cfg, TinyVAEConfig):
        return tiny_vae.encode(params, cfg, images)
    if tile:
        mean, _ = encode_tiled(params, cfg, images, tile, kernels=kernels)
    else:
        mean, _ = vae.encode(params, cfg, images, kernels)
    return vae.to_latents(mean, cfg)


def decode(
    params: Params, model: Model, latents: Array, devices: int = 1, tile: int | None = None
) -> tuple[Array, Array, Array]:
    """Latents [B, h, w, C] -> images [B, H, W, 3] in 0..1 float32, the same as uint8, and whether all is finite [B].

    One image per device at a time: pixels take far more memory than latents, and a larger batch is not faster. With
    `tile`, each image in overlapping parts of so many pixels.
    """

    def some(latents: Array) -> tuple[Array, Array, Array]:
        images = decode_latents(params, model.vae, model.kernels, spread(latents), tile)
        finite = jnp.isfinite(images).all((1, 2, 3))
        images = jnp.clip(images / 2 + 0.5, 0.0, 1.0)
        return images, jnp.round(images * 255.0).astype(jnp.uint8), finite

    batch = latents.shape[0]
    if batch == devices:
        return some(latents)
    rounds = latents.reshape(devices, batch // devices, *latents.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(batch, *a.shape[2:]), jax.lax.map(some, rounds))


def decode_latents(
    params: Params, cfg: VAEConfig | TinyVAEConfig, kernels: Kernels, latents: Array, tile: int | None
) -> Array:
    """Latents [B, h, w, C] -> images [B, H, W, 3] float32, about -1..1, by either kind of autoencoder."""
    if isinstance(cfg, TinyVAEConfig):
        return tiny_vae.decode(params, cfg, latents)
    latents = vae.from_latents(latents, cfg)
    if tile:
        return decode_tiled(params, cfg, latents, tile, kernels=kernels)
    return vae.decode(params, cfg, latents, kernels)


def preview(params: Params | None, model: Model, latents: Array) -> Array:
    """Denoised estimates [B, h, w, C] -> small pictures, uint8: by the preview's autoencoder, else by a linear map."""
    if model.preview is not None and params is not None:
        images = decode_latents(params, model.preview, model.kernels, latents, None) / 2 + 0.5
    else:
        images = latents_to_rgb(latents, model.vae)
    return jnp.round(jnp.clip(images, 0.0, 1.0) * 255.0).astype(jnp.uint8)


class Programs:
    """Compiles each program once, in the background if asked early, and hands it out.

    `shapes` are the components' parameter trees with a sharding on each leaf; no values are needed, so programs compile
    while weights load, or for devices that are not there. `tile` makes the VAE work in tiles of so many pixels.
    """

    def __init__(self, model: Model, mesh: Mesh, shapes: dict[str, Any], tile: int | None = None):
        self.model = model
        self.mesh = mesh
        self.shapes = shapes
        self.tile = tile
        self._futures: dict[tuple[str, Bucket | None], Future[Any]] = {}
        self._lock = threading.Lock()

    def compile(self, bucket: Bucket) -> list[Future[Any]]:
        """Begin to compile the programs of a bucket, each in a thread of its own: those of KINDS, in that order."""
        return [self.begin(kind, bucket) for kind in KINDS]

    def get(self, kind: str, bucket: Bucket | None = None) -> Callable[..., Any]:
        """The compiled program, waiting for it if need be. It takes the function's arguments less the static ones."""
        return self.begin(kind, bucket).result()

    def trace(self, kind: str, bucket: Bucket | None = None) -> jax.stages.Traced:
        """The program traced on shapes alone, for whoever lowers and compiles it another way."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return getattr(self, f"_trace_{kind}")(bucket)

    def begin(self, kind: str, bucket: Bucket | None = None) -> Future[Any]:
        """Begin to compile a program in a thread of its own, unless that was done before."""
        key = kind, self._shapes_of(kind, bucket)
        with self._lock:
            future = self._futures.get(key)
            if future is None:
                future = self._futures[key] = Future()
                threading.Thread(target=self._compile, args=(*key, future), name=f"compile {kind}", daemon=True).start()
        return future

    @staticmethod
    def _shapes_of(kind: str, bucket: Bucket | None) -> Bucket | None:
        """The bucket without what this kind of program does not depend on, so that buckets share it."""
        if kind == "encode_text" or bucket is None:
            return None
        if kind in ("advance", "observe", "join", "take"):
            return bucket
        if kind == "gather":
            return Bucket(bucket.batch, 0, 0, bucket.guided, bucket.chunks, bucket.pag_layers)
        return Bucket(1 if kind == "encode_image" else bucket.batch, bucket.height, bucket.width, guided=False)

    def _compile(self, kind: str, bucket: Bucket | None, future: Future[Any]) -> None:
        try:
            future.set_result(self.trace(kind, bucket).lower().compile())
        except BaseException as error:  # handed to whoever waits for the program
            with self._lock:
                del self._futures[kind, bucket]
            future.set_exception(error)

    def _trace_encode_text(self, _: None) -> jax.stages.Traced:
        params = {name: self.shapes[name] for name in self.model.text_encoders}
        ids, weights = (
            {name: self._whole((1, cfg.max_length), dtype) for name, cfg in self.model.text_encoders.items()}
            for dtype in (jnp.int32, jnp.float32)
        )
        run = jax.jit(lambda p, *texts: encode_text(p, self.model, *texts), out_shardings=replicated(self.mesh))
        return run.trace(params, ids, weights, self._whole((), jnp.int32))

    def _trace_gather(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(gather, out_shardings=split_images(self.mesh, bucket.batch, bucket.branches))
        return run.trace(self.shapes["unet"], self._texts(bucket))

    def _trace_start(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(start, out_shardings=split_images(self.mesh, bucket.batch))
        return run.trace(self._beginning(bucket))

    def _trace_encode_image(self, bucket: Bucket) -> jax.stages.Traced:
        images = self._whole((1, bucket.height, bucket.width, 3), jnp.float32)
        run = jax.jit(
            lambda p, images: encode_image(p, self.model, images, self.tile), out_shardings=replicated(self.mesh)
        )
        return run.trace(self.shapes["vae"], images)

    def _trace_advance(self, bucket: Bucket) -> jax.stages.Traced:
        slots = self._slots(bucket)
        run = jax.jit(
            lambda p, slots, cond, n: advance(p, self.model, bucket, slots, cond, n),
            donate_argnums=1,
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, slots),
        )
        return run.trace(self.shapes["unet"], slots, self._conditioning(bucket), self._whole((), jnp.int32))

    def _trace_join(self, bucket: Bucket) -> jax.stages.Traced:
        batch, own = self._state(bucket), self._state(replace(bucket, batch=1))
        run = jax.jit(join, donate_argnums=(0, 1), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, batch))
        return run.trace(*batch, own, self._whole((), jnp.int32))

    def _trace_take(self, bucket: Bucket) -> jax.stages.Traced:
        own = self._slots(replace(bucket, batch=1))
        run = jax.jit(take, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, own))
        return run.trace(self._slots(bucket), self._whole((), jnp.int32))

    def _trace_observe(self, bucket: Bucket) -> jax.stages.Traced:
        slots = self._slots(bucket)
        run = jax.jit(
            lambda p, *state: observe(p, self.model, bucket, *state),
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, slots), replicated(self.mesh)),
        )
        largest = {path: self._whole((), jnp.float32) for path in layers(self.shapes["unet"])}
        return run.trace(self.shapes["unet"], slots, self._conditioning(bucket), largest)

    def _trace_decode(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(
            lambda p, latents: decode(p, self.model, latents, math.gcd(bucket.batch, self.mesh.size), self.tile),
            out_shardings=split_images(self.mesh, bucket.batch),
        )
        return run.trace(self.shapes["vae"], self._split(self.latents_shape(bucket)))

    def _trace_preview(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(
            lambda p, latents: preview(p, self.model, latents), out_shardings=split_images(self.mesh, bucket.batch)
        )
        return run.trace(self.shapes.get("preview"), self._split(self.latents_shape(bucket)))

    def zero_text(self) -> Text:
        """The embeddings of a text that is not given, in models that take zeros for it."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self._text())

    def no_features(self, bucket: Bucket) -> Array | None:
        """Features before the first row, which must not be shallow: zeros; None if the bucket is not cached."""
        shape = self._features(bucket)
        return None if shape is None else jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)

    def no_images(self, bucket: Bucket) -> tuple[Slots, Conditioning]:
        """Slots of a bucket that are all at their end, and what they are told: zeros."""
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), self._state(bucket))

    def latents_shape(self, bucket: Bucket) -> tuple[int, int, int, int]:
        factor = self.model.vae.factor
        return bucket.batch, bucket.height // factor, bucket.width // factor, self.model.vae.latent_channels

    def _text(self) -> Text:
        """One chunk of text."""
        length, last = self.model.text_encoder_2.max_length, self.shapes["text_encoder_2"]["text_projection"]["weight"]
        return Text(
            self._whole((1, length, self.model.unet.cross_attention_dim), last.dtype),
            self._whole((1, last.shape[-1]), last.dtype),
        )

    def _texts(self, bucket: Bucket) -> list[list[list[Text]]]:
        """What `gather` is told, on every device."""
        return [[[self._text()] * bucket.chunks] * bucket.branches] * bucket.batch

    def _beginning(self, bucket: Bucket) -> Beginning:
        b, latents = bucket.batch, self.latents_shape(bucket)
        return Beginning(
            rows=self._split((b, MAX_ROWS, len(COLUMNS))),
            first=self._split((b,), jnp.int32),
            end=self._split((b,), jnp.int32),
            keys=self._split((b, 2), jnp.uint32),
            noise_scale=self._split((b,)),
            given=self._split((b,), jnp.bool_),
            noise=self._split(latents),
            picture_scale=self._split((b,)),
            picture=self._split(latents),
            mask=self._split((*latents[:3], 1)),
        )

    def _slots(self, bucket: Bucket) -> Slots:
        slots = jax.eval_shape(start, self._beginning(bucket))
        slots = with_sharding(slots, split_images(self.mesh, bucket.batch))
        return replace(slots, features=self._features(bucket))

    def _state(self, bucket: Bucket) -> tuple[Slots, Conditioning]:
        return self._slots(bucket), self._conditioning(bucket)

    def _features(self, bucket: Bucket) -> jax.ShapeDtypeStruct | None:
        if not bucket.cached:
            return None
        shape = features_shape(self.model.unet, *self.latents_shape(bucket)[1:3])
        dtype = self.shapes["unet"]["conv_in"]["weight"].dtype
        return self._split((bucket.batch, bucket.branches, *shape), dtype, branches=bucket.branches)

    def _conditioning(self, bucket: Bucket) -> Conditioning:
        b, g, latents = bucket.batch, bucket.branches, self.latents_shape(bucket)
        extra = self.model.unet.in_channels - latents[-1]
        gathered = jax.eval_shape(gather, self.shapes["unet"], self._texts(bucket))
        context, pooled = with_sharding(gathered, split_images(self.mesh, b, g))
        return Conditioning(
            context=context,
            pooled=pooled,
            time_ids=self._split((b, g, self.model.time_ids), branches=g),
            rescale=self._split((b,)),
            lengths=self._split((b, g), jnp.int32, branches=g) if bucket.chunks > 1 else None,
            freeu=self._split((b, 4)) if bucket.freeu else None,
            inpaint=self._split((*latents[:3], extra)) if extra else None,
        )

    def _split(
        self, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, branches: int | None = None
    ) -> jax.ShapeDtypeStruct:
        """An argument whose leading axis, of images, is split over the devices; or the second one, of `branches`."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split_images(self.mesh, shape[0], branches))

    def _whole(self, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        """An argument that every device has."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))
