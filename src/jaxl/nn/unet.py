"""The U-Net of SDXL and its relatives.

Podell et al. 2023, arXiv:2307.01952, section 2; a diffusers `UNet2DConditionModel` with text-time conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import zip_longest
from operator import getitem

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxl.config import EMPTY, UNetConfig, check_pag_layers
from jaxl.kernels import XLA, Kernels, by_rows
from jaxl.kernels.attention import attention
from jaxl.kernels.group_norm import group_norm
from jaxl.nn.added import NOTHING, Added, both
from jaxl.nn.blur import blur_matrix, blurred
from jaxl.nn.freeu import reweigh
from jaxl.nn.layers import (
    Params,
    Shapes,
    conv,
    conv_shapes,
    geglu,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
    numbered,
    resnet,
    resnet_shapes,
    upsampled_conv,
)
from jaxl.nn.lllite import Nudges, nudged


def unet_shapes(cfg: UNetConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of the U-Net."""
    channels, time_dim = cfg.channels, cfg.time_embed_dim
    res = partial(resnet_shapes, dtype=dtype, time_dim=time_dim)
    mlp = {"linear_1": channels[0], "linear_2": time_dim}

    def block(resnets: list[Shapes], depths: tuple[int, ...], width: int) -> Shapes:
        shapes: Shapes = {"resnets": numbered(resnets)}
        if any(depths):
            shapes["attentions"] = numbered([_transformer_shapes(cfg, width, depth, dtype) for depth in depths])
        return shapes

    down, skips = [], [channels[0]]
    for i, depths in enumerate(cfg.down):
        before, width = channels[max(i - 1, 0)], channels[i]
        resnets = [res(width if j else before, width) for j in range(len(depths))]
        shapes = block(resnets, depths, width)
        skips += [width] * len(depths)
        if i < len(channels) - 1:
            shapes["downsamplers"] = {"0": {"conv": conv_shapes(width, width, 3, dtype)}}
            skips.append(width)
        down.append(shapes)

    up, before = [], channels[-1]
    for i, depths in enumerate(cfg.up):
        width = channels[-1 - i]
        resnets = [res((width if j else before) + skips.pop(), width) for j in range(len(depths))]
        shapes = block(resnets, depths, width)
        if i < len(channels) - 1:
            shapes["upsamplers"] = {"0": {"conv": conv_shapes(width, width, 3, dtype)}}
        up.append(shapes)
        before = width

    shapes = {
        "conv_in": conv_shapes(cfg.in_channels, channels[0], 3, dtype),
        "time_embedding": {name: linear_shapes(inputs, time_dim, dtype) for name, inputs in mlp.items()},
        "add_embedding": {
            name: linear_shapes(inputs, time_dim, dtype)
            for name, inputs in (mlp | {"linear_1": cfg.projection_input_dim}).items()
        },
        "down_blocks": numbered(down),
        "up_blocks": numbered(up),
        "conv_norm_out": norm_shapes(channels[0], dtype),
        "conv_out": conv_shapes(channels[0], cfg.out_channels, 3, dtype),
    }
    if cfg.time_cond_proj_dim is not None:
        shapes["time_embedding"]["cond_proj"] = linear_shapes(cfg.time_cond_proj_dim, channels[0], dtype, bias=False)
    if cfg.mid is not None:
        width = channels[-1]
        shapes["mid_block"] = block([res(width, width) for _ in range(len(cfg.mid) + 1)], cfg.mid, width)
    return shapes


def unet(
    params: Params,
    cfg: UNetConfig,
    x: Array,
    t: Array,
    context: Params,
    pooled: Array,
    time_ids: Array,
    *,
    lengths: Array | None = None,
    guidance: Array | None = None,
    perturbed: Array | None = None,
    pag_layers: tuple[str, ...] = (),
    blur: Array | None = None,
    freeu: Array | None = None,
    features: Array | None = None,
    shallow: Array | None = None,
    added: Added = NOTHING,
    images: Sequence[ImageContext] = (),
    regions: Sequence[RegionContext] = (),
    kernels: Kernels = XLA,
) -> tuple[Array, Array]:
    """Predict noise, velocity or sample, as the checkpoint was trained to; also the features for later timesteps.

    x: [B, H, W, in_channels] scaled latents; t: [B] timesteps, float; context: what `unet_context` makes of the texts,
    once for all timesteps; pooled: [B, P]; time_ids: [B, 6] (original size, crop corner, target size, each height
    first) or [B, 5] for the refiner (original size, crop corner, aesthetic score). Returns [B, H, W, out_channels] and
    [B, *features_shape], in the parameters' dtype.

    lengths: int32 [B] in 1..T, the tokens of each row of the context that are real. guidance: float32 [B], the guidance
    scale that a U-Net with `time_cond_proj_dim` was distilled with (Meng et al. 2022, arXiv:2210.03142; Luo et al.
    2023, arXiv:2310.04378). perturbed: bool [B], the rows whose self-attention is the identity in `pag_layers`, static,
    of `cfg.pag_places` (Ahn et al. 2024, arXiv:2403.17377). blur: float32 [B]; where it is above 0, the queries of such
    a row are blurred by this sigma instead (Hong 2024, arXiv:2408.00760). freeu: float32 [B, 4], (s1, s2, b1, b2).
    features: what an earlier call returned. shallow: bool [B], the rows that take theirs from there and run the first
    convolution and the last layer alone; what lies between is not run at all where all rows are shallow (Ma et al.
    2023, DeepCache, arXiv:2312.00858). added: what ControlNets and their kin add on the way (`nn.added`). images: what
    cross-attention reads of pictures beside the texts. regions: what it reads in parts of them in place of the texts.

    Raises InputError for unknown pag_layers, ValueError for arguments that must come together and do not.
    """
    check_pag_layers(cfg, pag_layers)
    if (perturbed is not None) != bool(pag_layers):
        raise ValueError("perturbed and pag_layers need each other")
    if (features is None) != (shallow is None):
        raise ValueError("features and shallow need each other")

    x = x.astype(params["conv_in"]["weight"].dtype)
    temb = embedding(params, cfg, t, pooled, time_ids, guidance)
    shared = Shared(
        cfg, kernels, temb, context, lengths, perturbed, pag_layers, blur, freeu, added, tuple(images), tuple(regions)
    )
    first = conv(params["conv_in"], x, wrap=kernels.wrap)

    def deep() -> Array:
        x, skips = down(params, shared, first)
        x = sum(added.blocks[len(cfg.down) :], both(middle(params, shared, x), added.middle))
        if added.skips:
            skips = [own + more for own, more in zip(skips, added.skips, strict=True)]
        return up(params, shared, x, skips)

    if features is None or shallow is None:
        now = deep()
    else:
        own = shallow[:, None, None, None]
        now = lax.cond(by_rows.anywhere(~shallow.all()), lambda: jnp.where(own, features, deep()), lambda: features)
    last = first + added.skips[0] if added.skips else first
    x = _up_layer(params, shared, *_up_layers(cfg)[-1], now, last)
    x = group_norm(params["conv_norm_out"], x, cfg.norm_num_groups, cfg.norm_eps, silu=True, kernels=kernels)
    return conv(params["conv_out"], x, wrap=kernels.wrap), now


@dataclass(frozen=True)
class Shared:
    """What all blocks share in one evaluation: the network's form, and what it is told as in `unet`.

    temb: the `embedding`, [B, time_embed_dim].
    """

    cfg: UNetConfig
    kernels: Kernels
    temb: Array
    context: Params
    lengths: Array | None = None
    perturbed: Array | None = None
    pag_layers: tuple[str, ...] = ()
    blur: Array | None = None
    freeu: Array | None = None
    added: Added = NOTHING
    images: tuple[ImageContext, ...] = ()
    regions: tuple[RegionContext, ...] = ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageContext:
    """What cross-attention reads of pictures beside the text (Ye et al. 2023, arXiv:2308.06721, section 3.2.2).

    context: keys and values as `unet_context` makes them of the pictures' tokens. lengths: int32 [B], in 1..T, the
    tokens that are real. strengths: float32 [B, L], by which each of `cfg.transformers` adds what it reads. masks:
    float32 [B, h, w], further factors of each place, for every size of the features that transformers see.
    """

    context: Params
    lengths: Array
    strengths: Array
    masks: tuple[Array, ...]

    def at(self, cfg: UNetConfig, path: str, height: int, width: int) -> Array:
        """The factors of each place in a transformer [B, h * w, 1]."""
        strength = self.strengths[:, cfg.transformers.index(path)]
        return strength[:, None, None] * _of_size(self.masks, height, width)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RegionContext:
    """What cross-attention reads in a part of the picture, in place of the text there.

    context, lengths: as of the text. shares: float32 [B, h, w], from 0 to 1, what it has of each place, for every size
    of the features that transformers see; those of all regions add up to 1 at most.
    """

    context: Params
    lengths: Array | None
    shares: tuple[Array, ...]


def _of_size(masks: Sequence[Array], height: int, width: int) -> Array:
    """Return the one of a size, as factors of each place [B, h * w, 1]."""
    mask = next(mask for mask in masks if mask.shape[1:] == (height, width))
    return mask.reshape(len(mask), -1, 1)


def embedding(
    params: Params,
    cfg: UNetConfig,
    t: Array,
    pooled: Array,
    time_ids: Array,
    guidance: Array | None = None,
    more: Array | None = None,
) -> Array:
    """Return what each residual block is told of timestep, guidance, pooled text and sizes, [B, time_embed_dim].

    `more` [B, time_embed_dim] is added to it.

    Raises ValueError if the guidance is missing, or if this U-Net does not take it.
    """
    if guidance is not None and cfg.time_cond_proj_dim is None:
        raise ValueError("guidance is given, but this U-Net does not take it (no time_cond_proj_dim)")
    dtype = params["conv_in"]["weight"].dtype
    pooled = pooled.astype(dtype)
    sizes = sinusoids(time_ids.reshape(-1), cfg.addition_time_embed_dim).reshape(t.shape[0], -1).astype(dtype)
    time = sinusoids(t, cfg.channels[0]).astype(dtype)
    if cfg.time_cond_proj_dim is not None:
        if guidance is None:
            raise ValueError("guidance is missing; this U-Net takes the guidance scale (time_cond_proj_dim)")
        scale = guidance_sinusoids(guidance, cfg.time_cond_proj_dim).astype(dtype)
        time = time + linear(params["time_embedding"]["cond_proj"], scale)
    temb = embed_vector(params["time_embedding"], time)
    temb = temb + embed_vector(params["add_embedding"], jnp.concatenate([pooled, sizes], axis=-1))
    return jax.nn.silu(temb if more is None else temb + more)


def down(params: Params, shared: Shared, x: Array) -> tuple[Array, list[Array]]:
    """Run the blocks on the way down. Returns what leaves the last one, and the skips, of which `x` is the first."""
    cfg, skips = shared.cfg, [x]
    for i, (depths, more) in enumerate(zip_longest(cfg.down, shared.added.blocks[: len(cfg.down)])):
        block = params["down_blocks"][str(i)]
        for j, depth in enumerate(depths):
            x = _residual(block["resnets"][str(j)], shared, x)
            if depth:
                x = _transformer(params, shared, f"down_blocks.{i}.attentions.{j}", x, cfg.heads[i])
            skips.append(x)
        if any(depths):
            x = skips[-1] = both(x, more)
        if "downsamplers" in block:
            x = conv(block["downsamplers"]["0"]["conv"], x, stride=2, padding=(1, 1), wrap=shared.kernels.wrap)
            skips.append(x)
        if not any(depths):
            x = skips[-1] = both(x, more)
    return x, skips


def middle(params: Params, shared: Shared, x: Array) -> Array:
    """Run the block between the ways down and up, if this U-Net has one."""
    cfg = shared.cfg
    if cfg.mid is None:
        return x
    resnets = params["mid_block"]["resnets"]
    x = _residual(resnets["0"], shared, x)
    for j in range(len(cfg.mid)):
        x = _transformer(params, shared, f"mid_block.attentions.{j}", x, cfg.heads[-1])
        x = _residual(resnets[str(j + 1)], shared, x)
    return x


def up(params: Params, shared: Shared, x: Array, skips: Sequence[Array]) -> Array:
    """Run the layers on the way up, each with a skip from the way down. Returns what enters the last of them."""
    left = list(skips)
    for i, j in _up_layers(shared.cfg)[:-1]:
        x = _up_layer(params, shared, i, j, x, left.pop())
        if j == len(shared.cfg.up[i]) - 1:
            sampler = params["up_blocks"][str(i)]["upsamplers"]["0"]
            height, width = left[-1].shape[1:3]
            x = upsampled_conv(sampler["conv"], x, height, width, shared.kernels)
    return x


def _up_layers(cfg: UNetConfig) -> list[tuple[int, int]]:
    """The places, block and layer, on the way up."""
    return [(i, j) for i, depths in enumerate(cfg.up) for j in range(len(depths))]


def _up_layer(params: Params, shared: Shared, i: int, j: int, x: Array, skip: Array) -> Array:
    cfg, freeu = shared.cfg, shared.freeu
    if freeu is not None and i < 2:
        x, skip = reweigh(x, skip, skip_scale=freeu[:, i], backbone_scale=freeu[:, 2 + i])
    x = _residual(params["up_blocks"][str(i)]["resnets"][str(j)], shared, x, skip)
    if not cfg.up[i][j]:
        return x
    return _transformer(params, shared, f"up_blocks.{i}.attentions.{j}", x, cfg.heads[-1 - i])


def _residual(p: Params, shared: Shared, x: Array, skip: Array | None = None) -> Array:
    cfg = shared.cfg
    return resnet(p, x, cfg.norm_num_groups, cfg.norm_eps, shared.kernels, shared.temb, skip)


def _transformer(params: Params, shared: Shared, path: str, x: Array, heads: int) -> Array:
    """Blocks of self-attention, cross-attention to the context and a GEGLU layer, around a residual."""
    p = reduce(getitem, path.split("."), params)
    here = any(f"{path}.".startswith(f"{layer}.") for layer in shared.pag_layers)
    perturbed, blur = (shared.perturbed, shared.blur) if here else (None, None)
    _, h, w, c = x.shape
    smooth = None if blur is None else (blur > 0, blur_matrix(blur, h * by_rows.devices()), blur_matrix(blur, w))
    tokens = group_norm(p["norm"], x, shared.cfg.norm_num_groups, 1e-6, kernels=shared.kernels)
    tokens = linear(p["proj_in"], tokens.reshape(-1, c))
    blocks = p.get("transformer_blocks", {})
    shares = [_of_size(each.shares, h, w) for each in shared.regions]
    factors = [*shares, *(each.at(shared.cfg, path, h, w) for each in shared.images)] if blocks else []
    others = (*shared.regions, *shared.images)
    for i in map(str, range(len(blocks))):
        place = [*path.split("."), "transformer_blocks", i, "attn2"]
        read = tuple(
            (reduce(getitem, place, each.context), each.lengths, factor)
            for each, factor in zip(others, factors, strict=True)
        )
        text = reduce(getitem, place, shared.context)
        nudges = shared.added.within(f"{path}.transformer_blocks.{i}")
        told = heads, shared.kernels, shared.lengths, perturbed, nudges, 1 - sum(shares) if shares else None, read
        tokens = transformer_block(blocks[i], tokens, text, *told, smooth)
    return (linear(p["proj_out"], tokens) + x.reshape(-1, c)).reshape(x.shape)


def transformer_sizes(cfg: UNetConfig, height: int, width: int) -> list[tuple[int, int]]:
    """The sizes of the features that transformers see, for latents of this size."""
    sizes = []
    for _ in cfg.down:
        sizes.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    blocks = zip((*cfg.down, cfg.mid or (), *cfg.up), (*sizes, sizes[-1], *sizes[::-1]), strict=True)
    return list(dict.fromkeys(size for depths, size in blocks if any(depth > 0 for depth in depths)))


def features_shape(cfg: UNetConfig, height: int, width: int) -> tuple[int, int, int]:
    """Of the features that `unet` returns for one row of latents of this size: what enters its last layer."""
    return height, width, cfg.channels[0]


def unet_context(params: Params, prompt_embeds: Array) -> Params:
    """What cross-attention sees of the texts [B, T, cross_attention_dim]: keys and values of every block, [B, T, D].

    No timestep enters them, so they are made once for an image. The tree has the paths of the parameters, down to
    `attn2`, which holds `k` and `v`.
    """
    tree: Shapes = {}
    for name, p in params.items():
        if name == "attn2":
            embeds = prompt_embeds.astype(p["to_k"]["weight"].dtype)
            tree[name] = {"k": linear(p["to_k"], embeds), "v": linear(p["to_v"], embeds)}
        elif isinstance(p, Mapping) and (below := unet_context(p, prompt_embeds)):
            tree[name] = below
    return tree


def sinusoids(t: Array, dim: int) -> Array:
    """[N] -> [N, dim] float32: cosines, then sines, at frequencies from 1 down to 1/10000 (arXiv:1706.03762, 3.5)."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def guidance_sinusoids(scale: Array, dim: int) -> Array:
    """[N] -> [N, dim] float32: sines, then cosines of 1000 * (scale - 1), at frequencies from 1 to 1/10000 inclusive.

    As diffusers' `get_guidance_scale_embedding` of `guidance_scale - 1`; an odd `dim` ends with a zero.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = 1000.0 * (scale.astype(jnp.float32)[:, None] - 1.0) * frequencies
    return jnp.pad(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1), ((0, 0), (0, dim % 2)))


def embed_vector(p: Params, x: Array) -> Array:
    """Two linear layers, as embeddings of vectors have them."""
    return linear(p["linear_2"], jax.nn.silu(linear(p["linear_1"], x)))


def transformer_block_shapes(width: int, context: int, dtype: DTypeLike) -> Shapes:
    """The parameter tree of one block of `width` channels that attends to a text of `context` channels."""

    def attention_shapes(context: int) -> Shapes:
        return {
            "to_q": linear_shapes(width, width, dtype, bias=False),
            "to_k": linear_shapes(context, width, dtype, bias=False),
            "to_v": linear_shapes(context, width, dtype, bias=False),
            "to_out": {"0": linear_shapes(width, width, dtype)},
        }

    return {
        "norm1": norm_shapes(width, dtype),
        "attn1": attention_shapes(width),
        "norm2": norm_shapes(width, dtype),
        "attn2": attention_shapes(context),
        "norm3": norm_shapes(width, dtype),
        "ff": {
            "net": {"0": {"proj": linear_shapes(width, 8 * width, dtype)}, "2": linear_shapes(4 * width, width, dtype)}
        },
    }


def _transformer_shapes(cfg: UNetConfig, width: int, depth: int, dtype: DTypeLike) -> Shapes:
    block = transformer_block_shapes(width, cfg.cross_attention_dim, dtype)
    project = linear_shapes(width, width, dtype) if cfg.use_linear_projection else conv_shapes(width, width, 1, dtype)
    around: Shapes = {"norm": norm_shapes(width, dtype), "proj_in": project, "proj_out": project}
    return around if depth == EMPTY else around | {"transformer_blocks": numbered([block] * depth)}


# Compiled as part of the program around it; `jit` here means that blocks of the same shapes are traced once, not each.
@partial(jax.jit, static_argnums=(3, 4))
def transformer_block(
    p: Params,
    tokens: Array,
    context: Params,
    heads: int,
    kernels: Kernels,
    lengths: Array | None,
    perturbed: Array | None,
    nudges: Mapping[str, Nudges],
    share: Array | None = None,
    others: tuple[tuple[Params, Array | None, Array], ...] = (),
    smooth: tuple[Array, Array, Array] | None = None,
) -> Array:
    """Return what a block makes of tokens [B*T, C].

    Self-attention of rows that are `perturbed` is the identity, or by queries that are blurred: `smooth` says where,
    bool [B], and by which matrices.

    Of what is read of the `context` a `share` [B, T, 1] counts, all by default. Each of `others` is a context that is
    read beside it, its lengths, and its factors.

    XLA lays products of two axes out better than of three, and where blocks change between both it may read again what
    it wrote, for the sums of the next norm.
    """
    shape = (len(context["k"]), -1, tokens.shape[-1])

    def projected(name: str, norm: Params) -> Array:
        attn, part = name.split(".")
        if name not in nudges:
            return linear(p[attn][part], tokens, kernels, norm=norm).reshape(shape)
        return linear(p[attn][part], nudged(layer_norm(norm, tokens, kernels=kernels), nudges[name])).reshape(shape)

    q, k, v = (projected(name, p["norm1"]) for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v"))
    if perturbed is not None and smooth is not None:
        where, *matrices = smooth
        q = jnp.where((perturbed & where)[:, None, None], blurred(q, *matrices), q)
        perturbed = perturbed & ~where
    y = by_rows.self_attention(partial(attention, kernels=kernels), q, k, v, heads)
    if perturbed is not None:
        y = jnp.where(perturbed[:, None, None], v, y)  # each position sees itself alone
    tokens = linear(p["attn1"]["to_out"]["0"], y.reshape(tokens.shape), kernels, residual=tokens)
    q = projected("attn2.to_q", p["norm2"])
    y = attention(q, context["k"], context["v"], heads, lengths=lengths, kernels=kernels)
    if share is not None:
        y = share.astype(y.dtype) * y
    for other, real, factors in others:
        read = attention(q, other["k"], other["v"], heads, lengths=real, kernels=kernels)
        y = y + factors.astype(y.dtype) * read
    tokens = linear(p["attn2"]["to_out"]["0"], y.reshape(tokens.shape), kernels, residual=tokens)
    y = geglu(p["ff"]["net"]["0"]["proj"], tokens, p["norm3"], kernels)
    return linear(p["ff"]["net"]["2"], y, kernels, residual=tokens)
