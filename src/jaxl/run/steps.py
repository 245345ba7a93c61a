"""What programs compute, as pure functions. What is compiled in comes first, then what a call is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxl.config import ControlConfig, IPAdapterConfig, TinyVAEConfig, VAEConfig
from jaxl.diffusion import loop
from jaxl.diffusion.loop import GivenNoise, Row, Slots
from jaxl.diffusion.noise import initial_noise
from jaxl.diffusion.variation import blended
from jaxl.kernels import XLA, Kernels
from jaxl.nn import tiny_vae, vae
from jaxl.nn.added import NOTHING
from jaxl.nn.clip import Replaced, clip, emphasize
from jaxl.nn.clip_vision import clip_vision
from jaxl.nn.ip_adapter import image_tokens
from jaxl.nn.layer_kinds import adapted
from jaxl.nn.layers import Params
from jaxl.nn.preview import latents_to_rgb
from jaxl.nn.tiles import decode_tiled, encode_tiled
from jaxl.nn.unet import ImageContext, RegionContext, features_shape, unet, unet_context
from jaxl.run.bucket import Beginning, Branch, Bucket, Conditioning, Text
from jaxl.run.control_kinds import Control, Evaluation, flat, kind_of
from jaxl.run.evaluations import in_turn, takes_turns
from jaxl.run.guidance import perpendicular, shaped
from jaxl.run.image_prompts import ENCODER, PROJECTION
from jaxl.run.model import Model
from jaxl.run.sharding import EACH, PIXELS, WHOLE, by_rows, split_images, splits_pictures, spread, whole, with_sharding
from jaxl.run.target import Leaf, Target, shapes_of
from jaxl.run.tiles import in_tiles
from jaxl.weights.quantise import observing


def encode_text(
    model: Model,
    params: Params,
    ids: Mapping[str, Leaf],
    weights: Mapping[str, Leaf],
    clip_skip: Leaf,
    replaced: Mapping[str, Replaced],
) -> Text:
    """N texts, as ids and weights [N, T] for each text encoder -> their embeddings side by side.

    (Podell et al. 2023, arXiv:2307.01952, section 2.1.) The pooled embedding knows no weights.
    """
    states, pooled = [], None
    for name, cfg in model.text_encoders.items():
        hidden, pooled = clip(params[name], cfg, ids[name], clip_skip, model.kernels, replaced.get(name))
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


def start(b: Beginning) -> Slots:
    """Slots at their first row."""
    own, other = (initial_noise(keys, b.noise.shape[1:]) for keys in (b.keys, b.variation_keys))
    share, given = b.variation[:, None, None, None], b.given[:, None, None, None]
    noise = jnp.where(given, b.noise, jnp.where(share > 0, blended(own, other, share), own))
    slots = loop.init_slots(b.rows, b.end, b.keys, noise, b.noise_scale, b.picture, b.picture_scale, b.mask)
    return replace(slots, row=b.first)


def slots_shapes(to: Target, bucket: Bucket) -> Slots:
    """The shapes of slots, as `start` makes them, with features if the bucket is cached."""
    slots = shapes_of(start, Beginning.shapes(to, bucket))
    slots = with_sharding(slots, split_images(to.mesh, bucket.batch))
    return replace(slots, features=features_shapes(to, bucket))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Features:
    """What is kept from row to row: the network's `deep` features [B, G, ...] where the bucket is cached, of each tile
    if it has such [B, G, tiles, ...], and the `momentum` of guidance [B, h, w, C] where it is shaped.
    """

    deep: Leaf | None
    momentum: Leaf | None


def features_shapes(to: Target, bucket: Bucket) -> Features:
    """The shapes of what is kept from row to row."""
    latents, layout = bucket.latents_shape(to.model), bucket.layout(to.model)
    dtype, tiles, size = to.shapes["unet"]["conv_in"]["weight"].dtype, (), latents[1:3]
    if layout is not None:
        tiles, size = (layout.count,), (layout.height, layout.width)
    deep = bucket.batch, bucket.branches, *tiles, *features_shape(to.model.unet, *size)
    return Features(
        deep=to.split(deep, dtype, branches=bucket.branches) if bucket.cached else None,
        momentum=to.split(latents) if bucket.shaped else None,
    )


def embed_control(
    cfg: ControlConfig, params: Params, picture: Leaf, kind: Leaf, scale: Leaf, kinds: Leaf
) -> tuple[Any, Array | None]:
    """A picture [1, H, W, C] in 0..1 -> its part of `embedded`, and `kinds`, of `Controlled`.

    In a union the picture is of a `kind`, int32 [], has a strength, `scale`, float32 [], and is one of pictures of
    `kinds`, 0 or 1, float32 [1, K].
    """
    return kind_of(cfg).embed(params, picture, kind, scale, kinds)


def gather_control(params: Params, texts: list[list[list[Text]]]) -> dict[str, Any]:
    """Chunks of texts, [image][branch][chunk] -> `context` of `Controlled`."""
    return gather(params, texts)[0]


def embed_image(model: Model, cfg: IPAdapterConfig, params: Params, pixels: Leaf, shown: Leaf) -> Array:
    """A picture as `clip_vision` takes it [1, S, S, 3] -> its tokens [1, T, D].

    `params` are the encoder's and the projection's. What is not `shown`, bool [], has an embedding of zeros: so are the
    tokens of the negative branch made, of a picture of zeros.
    """
    embedding, hidden = clip_vision(params[ENCODER], cfg.encoder, pixels, model.kernels)
    return image_tokens(params[PROJECTION], cfg, jnp.where(shown, embedding, 0), hidden, model.kernels)


def gather_images(params: Sequence[Params], tokens: list[list[Array]]) -> Params:
    """Tokens of pictures [image][branch], each [1, T, D], and each image's adapter -> `context` of `Prompted`."""
    own = [unet_context(p, jnp.concatenate(each)) for p, each in zip(params, tokens, strict=True)]
    return jax.tree.map(lambda *each: whole(jnp.stack(each)), *own)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Told:
    """What E evaluations of the network are told, [E, ...]: all but what has pixels, as `unet` takes it.

    Those that count for nothing are not `live`. `adapters` may be of images, whose evaluations are neighbours.
    `controls` are without their `embedded`, `images` without their `masks`, `regions` without their `shares`.
    """

    live: Array
    t: Array
    guidance: Array | None
    context: Params
    pooled: Array
    time_ids: Array
    lengths: Array | None
    shallow: Array | None
    perturbed: Array | None
    blur: Array | None
    freeu: Array | None
    adapters: Params | None
    controls: list[Control]
    images: list[ImageContext]
    regions: list[RegionContext]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pictures:
    """What E evaluations are told by pixel, [E, h, w, ...].

    `x` is what the U-Net sees, scaled latents and what may stand behind them. `embedded` is that of controls, `masks`
    are those of image prompts, `shares` those of regions.
    """

    x: Array
    features: Array | None
    embedded: list[Any]
    masks: list[tuple[Array, ...]]
    shares: list[tuple[Array, ...]]


def evaluate(
    model: Model, bucket: Bucket, params: Params, controls: Sequence[Params], told: Told, pictures: Pictures
) -> tuple[Array, Array]:
    """The network's outputs for evaluations, [E, h, w, C], and its features."""
    x = spread(pictures.x)
    latents = x[..., : model.vae.latent_channels]
    plain = replace(model.kernels, wrap=XLA.wrap)  # what controls see has edges
    at = Evaluation(latents, told.t, told.pooled, told.time_ids, told.lengths, told.shallow, plain)
    added = NOTHING
    for cfg, own, control, embedded in zip(bucket.controls, controls, told.controls, pictures.embedded, strict=True):
        added += kind_of(cfg).added(own, replace(control, embedded=embedded), at)
    return unet(
        adapted(params, told.adapters),
        model.unet,
        x,
        told.t,
        told.context,
        told.pooled,
        told.time_ids,
        lengths=told.lengths,
        guidance=told.guidance,
        perturbed=told.perturbed,
        pag_layers=bucket.pag_layers,
        blur=told.blur,
        freeu=told.freeu,
        features=pictures.features,
        shallow=told.shallow,
        added=added,
        images=[replace(image, masks=masks) for image, masks in zip(told.images, pictures.masks, strict=True)],
        regions=[replace(each, shares=shares) for each, shares in zip(told.regions, pictures.shares, strict=True)],
        kernels=model.kernels,
    )


def denoise(
    model: Model,
    bucket: Bucket,
    params: Params,
    controls: Sequence[Params],
    cond: Conditioning,
    x: Array,
    row: Row,
    features: Features | None,
) -> tuple[Array, Array, Features | None]:
    """The network's output, float32, for scaled latents `x`, guided as the bucket has branches, and not; its features.

    There are none before the first row. Where the mesh splits rows of pictures
    (`kernels.by_rows`), the network is all that is split: latents are on every device.
    """
    b, g = cond.time_ids.shape[:2]
    kept = features or Features(None, None)
    # an image's branches are neighbours on the batch axis, so splitting the axis over devices keeps them together
    per_branch = partial(jax.tree.map, partial(jnp.repeat, repeats=g, axis=0))

    context, pooled, time_ids, lengths = flat((cond.context, cond.pooled, cond.time_ids, cond.lengths))
    of_controls = [each.in_row(row) for each in cond.controls]
    images = [each.in_row(row, g) for each in cond.image_prompts]
    regions = [each.told(g) for each in cond.regions]
    told = Told(
        live=counted(bucket, row).reshape(-1),
        t=per_branch(row["t"]),
        guidance=per_branch(row["guidance"]) if model.unet.time_cond_proj_dim else None,
        context=context,
        pooled=pooled,
        time_ids=time_ids,
        lengths=lengths,
        shallow=None if kept.deep is None else per_branch(row["shallow"] > 0),
        perturbed=jnp.tile(jnp.arange(g) == bucket.order.index(Branch.PERTURBED), b) if bucket.pag_layers else None,
        blur=per_branch(cond.blur),
        freeu=per_branch(cond.freeu),
        adapters=per_branch(cond.adapters) if splits_pictures() else cond.adapters,
        controls=[replace(each, embedded=None) for each in of_controls],
        images=[replace(each, masks=()) for each in images],
        regions=[replace(each, shares=()) for each in regions],
    )
    pictures = Pictures(
        x=per_branch(x if cond.inpaint is None else jnp.concatenate([x, cond.inpaint], axis=-1)),
        features=None if kept.deep is None else kept.deep.reshape(b * g, *kept.deep.shape[2:]),
        embedded=[each.embedded for each in of_controls],
        masks=[each.masks for each in images],
        shares=[each.shares for each in regions],
    )

    def network(told: Told, pictures: Pictures) -> tuple[Array, Array]:
        run = partial(evaluate, model, bucket)
        if takes_turns(model.kernels, len(told.live)):
            return in_turn(run, params, controls, told, pictures, told.live)
        return by_rows(run, WHOLE, WHOLE, EACH, PIXELS)(params, controls, told, pictures)

    layout = bucket.layout(model)
    if layout is None:
        out, deep = network(told, pictures)
    else:

        def network_of_tiles(told: Told, parts: Pictures, features: Array | None) -> tuple[Array, Array]:
            return network(told, replace(parts, features=features))

        whole_features, pictures = pictures.features, replace(pictures, features=None)
        out, deep = in_tiles(network_of_tiles, layout, told, pictures, whole_features, model.unet.out_channels)
    outputs = out.astype(jnp.float32).reshape(b, g, *out.shape[1:])
    guided, momentum = guide(bucket, outputs, row, x, kept.momentum)
    kept = Features(None if kept.deep is None or deep is None else deep.reshape(kept.deep.shape), momentum)
    plain = outputs[:, bucket.order.index(Branch.NEGATIVE if bucket.guided else Branch.POSITIVE)]
    return guided, plain, None if features is None else kept


def counted(bucket: Bucket, row: Row) -> Array:
    """Return which branches count in a row, bool [B, G]: none of an image that has ended, nor those that `guide` takes
    no part of. Where something of each is kept for the next row, all do.
    """
    live = row["number"] >= 0
    counts = dict.fromkeys(bucket.order, live)
    if not (bucket.cached or bucket.shaped):
        apart = row["perp_neg"] > 0
        guided = (row["guidance"] != 1) | (row["x_u"] != 0) | (row["push_u"] != 0) | apart
        steered = {Branch.NEGATIVE: guided, Branch.PERTURBED: row["pag"] != 0, Branch.EMPTY: apart}
        counts |= {branch: live & steers for branch, steers in steered.items()}
    return jnp.stack([counts[branch] for branch in bucket.order], axis=1)


def guide(bucket: Bucket, outputs: Array, row: Row, x: Array, momentum: Array | None) -> tuple[Array, Array | None]:
    """Return one prediction [B, h, w, C] from those of the branches [B, G, h, w, C], by the scales in the row.

    Also the momentum for the next row, where the bucket is shaped; `x` are the latents that the network sees.

    Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, equation 6) or what `run.guidance` has in its
    place, perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377, equation 16) or smoothed-energy guidance,
    which has the same form, then the share `rescale` of the way back to the positive prediction's deviation (Lin et al.
    2023, arXiv:2305.08891, section 3.4).
    """
    guidance, pag, perp_neg, rescale = (
        row[name][:, None, None, None] for name in ("guidance", "pag", "perp_neg", "rescale")
    )

    def of(branch: Branch) -> Array:
        return outputs[:, bucket.order.index(branch)]

    positive = out = of(Branch.POSITIVE)
    if bucket.guided:
        negative = of(Branch.NEGATIVE)
        if momentum is None:
            out = negative + guidance * (positive - negative)
        else:
            out, momentum = shaped(positive, negative, x, row, momentum)
        if bucket.perp_neg:
            apart = perpendicular(positive, negative, of(Branch.EMPTY), guidance, perp_neg)
            out = jnp.where(perp_neg > 0, apart, out)
    if bucket.pag_layers:
        out = out + pag * (positive - of(Branch.PERTURBED))
    if bucket.guided:
        own, wanted = (jnp.std(a, axis=(1, 2, 3), keepdims=True) for a in (out, positive))
        out = jnp.where(rescale > 0, out * (rescale * wanted / own + 1 - rescale), out)
    return out, momentum


def advance(
    model: Model,
    bucket: Bucket,
    params: Params,
    slots: Slots,
    cond: Conditioning,
    n: Leaf,
    controls: Sequence[Params],
    given: GivenNoise | None,
) -> Slots:
    """Run the next `n` rows (traced) of every slot, which has features.

    `params` are the U-Net's, `controls` those of the bucket's controls. `given` is the noise of so many rows, if any.
    """
    if takes_turns(model.kernels, bucket.batch * bucket.branches):  # brought to every device once, not in each row
        cond = jax.tree.map(whole, cond)
    return loop.advance(partial(denoise, model, bucket, params, controls, cond), slots, n, given)


def join(slots: Slots, cond: Conditioning, one: tuple[Slots, Conditioning], place: Leaf) -> tuple[Slots, Conditioning]:
    """B images, with another, `one` of a batch of one, at a place (int32, traced)."""
    return jax.tree.map(lambda old, new: jnp.where(_is_at(place, old), new.astype(old.dtype), old), (slots, cond), one)


def take(slots: Slots, place: Leaf) -> Slots:
    """The image at a place, as a batch of one."""
    # a sum with zeros rather than a slice, so that no device asks for all that the others have
    return jax.tree.map(lambda a: jnp.where(_is_at(place, a), a, 0).sum(0, dtype=a.dtype, keepdims=True), slots)


def mark(row: Array) -> Array:
    """How far images are, in memory of its own: the next `advance` takes over that of the slots."""
    return row + 0


def _is_at(place: Array, a: Array) -> Array:
    return (jnp.arange(a.shape[0]) == place).reshape(-1, *[1] * (a.ndim - 1))


def observe(
    model: Model, bucket: Bucket, params: Params, slots: Slots, cond: Conditioning, largest: dict[str, Leaf]
) -> tuple[Slots, dict[str, Array]]:
    """Run one row; also `largest`, by layer, raised to the greatest magnitude that went into each of those layers."""
    model = replace(model, kernels=XLA)  # which has derivatives

    def run(largest: dict[str, Array]) -> tuple[Array, Slots]:
        after = loop.run_row(partial(denoise, model, bucket, observing(params, largest), (), cond), slots)
        return after.latents.sum(), after

    seen, after = jax.grad(run, has_aux=True)(largest)
    return after, jax.tree.map(jnp.maximum, seen, largest)


def encode_image(model: Model, params: Params, images: Leaf, tile: int | None = None) -> Array:
    """Images [B, H, W, 3] in -1..1 -> latents [B, h, w, C] float32: the mean of what the encoder says.

    With `tile`, in overlapping parts of so many pixels, as in `decode`.
    """

    def network(params: Params, images: Array) -> Array:
        cfg, kernels = model.vae, model.kernels
        if isinstance(cfg, TinyVAEConfig):
            return tiny_vae.encode(params, cfg, images)
        if tile:
            mean, _ = encode_tiled(params, cfg, images, tile, kernels=kernels)
        else:
            mean, _ = vae.encode(params, cfg, images, kernels)
        return vae.to_latents(mean, cfg)

    return by_rows(network, WHOLE, PIXELS)(params, images)


def decode(
    model: Model, params: Params, latents: Array, devices: int = 1, tile: int | None = None
) -> tuple[Array, Array, Array]:
    """Latents [B, h, w, C] -> images [B, H, W, 3] in 0..1 float32, the same as uint8, and whether all is finite [B].

    One image per device at a time: pixels take far more memory than latents, and a larger batch is not faster. With
    `tile`, each image in overlapping parts of so many pixels.
    """

    def some(latents: Array) -> tuple[Array, Array, Array]:
        images = network(params, spread(latents))
        finite = jnp.isfinite(images).all((1, 2, 3))
        images = jnp.clip(images / 2 + 0.5, 0.0, 1.0)
        return images, jnp.round(images * 255.0).astype(jnp.uint8), finite

    network = by_rows(partial(decode_latents, cfg=model.vae, kernels=model.kernels, tile=tile), WHOLE, PIXELS)
    batch = latents.shape[0]
    if batch == devices:
        return some(latents)
    rounds = latents.reshape(devices, batch // devices, *latents.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(batch, *a.shape[2:]), jax.lax.map(some, rounds))


def decode_latents(
    params: Params, latents: Array, cfg: VAEConfig | TinyVAEConfig, kernels: Kernels, tile: int | None = None
) -> Array:
    """Latents [B, h, w, C] -> images [B, H, W, 3] float32, about -1..1, by either kind of autoencoder."""
    if isinstance(cfg, TinyVAEConfig):
        return tiny_vae.decode(params, cfg, latents)
    latents = vae.from_latents(latents, cfg)
    if tile:
        return decode_tiled(params, cfg, latents, tile, kernels=kernels)
    return vae.decode(params, cfg, latents, kernels)


def preview(model: Model, params: Params | None, latents: Array) -> Array:
    """Denoised estimates [B, h, w, C] -> small pictures, uint8: by the preview's autoencoder, else by a linear map."""
    if model.preview is not None and params is not None:
        images = decode_latents(params, latents, model.preview, model.kernels) / 2 + 0.5
    else:
        images = latents_to_rgb(latents, model.vae)
    return jnp.round(jnp.clip(images, 0.0, 1.0) * 255.0).astype(jnp.uint8)
