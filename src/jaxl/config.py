"""Configurations of the networks: frozen dataclasses read from a checkpoint's own `config.json`.

Reading is strict. A field is *used* (it becomes part of the dataclass), *fixed* (jaxl implements one value of it), or
*inert* (it changes no result at inference). Anything else that is switched on is refused by name, because a field
that is silently ignored means a wrong picture later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxl.errors import CheckpointError, InputError, nearest

Json = Mapping[str, Any]
# of weights and compute, by name
Dtype = Literal["auto", "bfloat16", "float32"]
# how devices share pictures: see `run.sharding.shares`
Split = Literal["auto", "images", "rows"]

# diffusers' EMAModel writes into the config how it averaged the weights
AVERAGE = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")


# what transformers writes into configs, and no picture depends on
OF_TRAINING = (
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "torch_dtype", "dtype"),
    *("transformers_version", "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "problem_type"),
    "use_cache",
)


def read_fields(
    raw: Json, *, what: str, used: Json, fixed: Mapping[str, tuple[Any, ...]], inert: Iterable[str]
) -> dict[str, Any]:
    """Return the `used` fields of `raw`, with the given defaults for absent ones.

    `fixed` maps a field to the values jaxl implements. Fields in `inert`, and those that start with `_`, are skipped.
    Any other field is refused unless it is null or false, that is, switched off. Where the default is a whole number,
    the value must be one, or a list of them. Raises CheckpointError; `what` names the file in errors.
    """
    known = set(used) | set(fixed) | set(inert)
    for name, value in raw.items():
        if name.startswith("_") or name in known or value is None or value is False:
            continue
        raise CheckpointError(f"{what}: field {name}={value!r} is not known to jaxl and may change the result")
    for name, allowed in fixed.items():
        value = raw.get(name, allowed[0])
        if isinstance(value, list):
            value = tuple(value)
        if value not in allowed:
            wanted = " or ".join(repr(a) for a in allowed)
            raise CheckpointError(f"{what}: {name}={value!r} is not supported, only {wanted}")
    for name, default in used.items():
        value = raw.get(name)
        if type(default) is int and value is not None and not _whole(value):
            raise CheckpointError(f"{what}: {name}={value!r} is not a whole number")
    return {name: raw.get(name, default) for name, default in used.items()}


def _whole(value: Any) -> bool:
    return all(map(_whole, value)) if isinstance(value, (list, tuple)) else type(value) is int


def _each(value: Any, n: int) -> list[Any]:
    """Return one value for each of `n` blocks: a list as it is, a single value repeated."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * n


# the depth of a transformer that has no blocks, only what stands around them, as in a ControlNet that was made small
EMPTY = -1


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net of SDXL and its relatives (Podell et al. 2023, arXiv:2307.01952, section 2).

    `down`, `mid` and `up` hold the transformer depth after each residual block, 0 for none, and EMPTY for one without
    blocks. SDXL base is
    `down=((0, 0), (2, 2), (10, 10))`, `mid=(10,)`, `up=((10, 10, 10), (2, 2, 2), (0, 0, 0))`. `mid` lists the
    transformers between the residual blocks of the middle: `(d,)` is block, transformer, block; `()` is one block
    alone (SSD-1B); None is no middle at all. `time_cond_proj_dim` is the width of the embedded guidance scale in a
    U-Net that was distilled with one (LCM), else None.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    heads: tuple[int, ...]
    down: tuple[tuple[int, ...], ...]
    mid: tuple[int, ...] | None
    up: tuple[tuple[int, ...], ...]
    cross_attention_dim: int
    addition_time_embed_dim: int
    projection_input_dim: int
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool
    sample_size: int
    time_cond_proj_dim: int | None

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.channels[0]

    @property
    def depths(self) -> dict[str, tuple[int, ...]]:
        """The depths of the transformers in each block, by parameters' path, in the order in which the blocks run."""
        return {
            **{f"down_blocks.{i}": depths for i, depths in enumerate(self.down)},
            "mid_block": self.mid or (),
            **{f"up_blocks.{i}": depths for i, depths in enumerate(self.up)},
        }

    @property
    def pag_places(self) -> tuple[str, ...]:
        """The places where attention can be perturbed: blocks with transformers, and these, by parameters' path."""
        return tuple(
            place
            for block, depths in self.depths.items()
            if any(depths)
            for place in (block, *(f"{block}.attentions.{i}" for i in range(len(depths))))
        )

    @property
    def transformers(self) -> tuple[str, ...]:
        """The places of the transformers that have blocks, by parameters' path, in the order in which they run."""
        places = [(f"{block}.attentions", depths) for block, depths in self.depths.items()]
        return tuple(f"{place}.{i}" for place, depths in places for i, depth in enumerate(depths) if depth > 0)

    @classmethod
    def from_json(cls, raw: Json, what: str = "unet/config.json") -> UNetConfig:
        """Read a diffusers `UNet2DConditionModel` config. Raises CheckpointError naming the field at fault."""
        f = read_fields(
            raw,
            what=what,
            used={
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": 8,
                "num_attention_heads": None,
                "layers_per_block": 2,
                "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
                "mid_block_type": "UNetMidBlock2DCrossAttn",
                "transformer_layers_per_block": 1,
                "reverse_transformer_layers_per_block": None,
                "cross_attention_dim": 1280,
                "addition_time_embed_dim": None,
                "projection_class_embeddings_input_dim": None,
                "norm_num_groups": 32,
                "norm_eps": 1e-5,
                "use_linear_projection": False,
                "sample_size": 128,
                "time_cond_proj_dim": None,
            },
            fixed={
                "addition_embed_type": ("text_time",),
                "act_fn": ("silu", "swish"),
                "center_input_sample": (False,),
                "flip_sin_to_cos": (True,),
                "freq_shift": (0,),
                "downsample_padding": (1,),
                "mid_block_scale_factor": (1,),
                "only_cross_attention": (False,),
                "mid_block_only_cross_attention": (None, False),
                "dual_cross_attention": (False,),
                "class_embed_type": (None,),
                "class_embeddings_concat": (False,),
                "num_class_embeds": (None,),
                "encoder_hid_dim": (None,),
                "encoder_hid_dim_type": (None,),
                "resnet_time_scale_shift": ("default",),
                "resnet_skip_time_act": (False,),
                "resnet_out_scale_factor": (1,),
                "time_embedding_type": ("positional",),
                "time_embedding_dim": (None,),
                "time_embedding_act_fn": (None,),
                "timestep_post_act": (None,),
                "conv_in_kernel": (3,),
                "conv_out_kernel": (3,),
                "attention_type": ("default",),
                "cross_attention_norm": (None,),
            },
            # softmax is always float32 here, so upcast_attention changes nothing
            inert=("dropout", "upcast_attention", "addition_embed_type_num_heads", *AVERAGE),
        )
        channels = tuple(f["block_out_channels"])
        n = len(channels)
        down_types, up_types = tuple(f["down_block_types"]), tuple(f["up_block_types"])
        for field, types, plain, attentive in (
            ("down_block_types", down_types, "DownBlock2D", "CrossAttnDownBlock2D"),
            ("up_block_types", up_types, "UpBlock2D", "CrossAttnUpBlock2D"),
        ):
            if len(types) != n or not set(types) <= {plain, attentive}:
                raise CheckpointError(
                    f"{what}: {field}={types!r} is not supported, only {n} of {plain} and {attentive}"
                )
        # diffusers names the number of heads `attention_head_dim` in every published U-Net config
        heads = _each(f["num_attention_heads"] or f["attention_head_dim"], n)
        for field in ("layers_per_block", "transformer_layers_per_block", "attention_head_dim"):
            if len(_each(f[field], n)) != n:
                raise CheckpointError(f"{what}: {field} has {len(f[field])} values for {n} blocks")
        _divide(what, channels, heads, "heads")
        _divide(what, channels, [f["norm_num_groups"]] * n, "groups")
        layers = _each(f["layers_per_block"], n)
        depths = [_depth(depth) for depth in _each(f["transformer_layers_per_block"], n)]
        up_depths = f["reverse_transformer_layers_per_block"]
        if up_depths is None:
            if any(isinstance(d, (list, tuple)) for d in depths):
                raise CheckpointError(
                    f"{what}: reverse_transformer_layers_per_block is missing for an asymmetric U-Net"
                )
            up_depths = depths[::-1]
        mid_type, mid_depth = f["mid_block_type"], depths[-1]
        if mid_type == "UNetMidBlock2DCrossAttn":
            mid = (_each(mid_depth, 1)[0],)
        elif mid_type == "UNetMidBlock2D":
            mid = ()
        elif mid_type is None:
            mid = None
        else:
            raise CheckpointError(f"{what}: mid_block_type={mid_type!r} is not supported")
        for needed in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if f[needed] is None:
                raise CheckpointError(f"{what}: {needed} is missing; this is not an SDXL U-Net")
        cross = set(_each(f["cross_attention_dim"], n))
        if len(cross) != 1:
            raise CheckpointError(f"{what}: cross_attention_dim={sorted(cross)} differs between blocks")
        sample_size = f["sample_size"]
        if isinstance(sample_size, (list, tuple)):
            sample_size = sample_size[0]
        return cls(
            in_channels=f["in_channels"],
            out_channels=f["out_channels"],
            channels=channels,
            heads=tuple(heads),
            down=tuple(
                tuple(_each(depths[i], layers[i])) if "CrossAttn" in kind else (0,) * layers[i]
                for i, kind in enumerate(down_types)
            ),
            mid=mid,
            up=tuple(
                tuple(_each(up_depths[i], layers[n - 1 - i] + 1))
                if "CrossAttn" in kind
                else (0,) * (layers[n - 1 - i] + 1)
                for i, kind in enumerate(up_types)
            ),
            cross_attention_dim=cross.pop(),
            addition_time_embed_dim=f["addition_time_embed_dim"],
            projection_input_dim=f["projection_class_embeddings_input_dim"],
            norm_num_groups=f["norm_num_groups"],
            norm_eps=float(f["norm_eps"]),
            use_linear_projection=f["use_linear_projection"],
            sample_size=sample_size or 128,
            time_cond_proj_dim=f["time_cond_proj_dim"],
        )


def _depth(depth: Any) -> Any:
    """Return the depth, or depths, of a block's transformers as `UNetConfig` has them."""
    return [_depth(each) for each in depth] if isinstance(depth, (list, tuple)) else depth or EMPTY


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet of SDXL (Zhang et al. 2023, arXiv:2302.05543): a U-Net's way down and middle, and what is around.

    `unet` is that part; its way up is not used. The picture, of `picture_channels`, goes through convolutions of the
    widths `embedding`, of which each but the first halves it. `bgr`: the network wants blue first. `pooled`: its
    residuals are means over the picture. A union (https://huggingface.co/xinsir/controlnet-union-sdxl-1.0) knows so
    many `kinds` of pictures, and has so many `fusing` layers for what is known of each; others have 0 of both.
    """

    unet: UNetConfig
    picture_channels: int
    embedding: tuple[int, ...]
    bgr: bool
    pooled: bool
    kinds: int = 0
    fusing: int = 0

    @property
    def residuals(self) -> tuple[int, ...]:
        """The channels of what it adds to the U-Net's skips, in their order, and at last to its middle."""
        channels = self.unet.channels
        widths = [channels[0]]
        for i, depths in enumerate(self.unet.down):
            widths += [channels[i]] * (len(depths) + (i < len(channels) - 1))
        return (*widths, channels[-1])

    @property
    def parts(self) -> int:
        """How many things it adds, each of which has a strength."""
        return len(self.residuals)

    @classmethod
    def from_json(cls, raw: Json, what: str = "config.json") -> ControlNetConfig:
        """Read the config of a diffusers `ControlNetModel` or `ControlNetUnionModel`.

        Raises CheckpointError naming the field at fault.
        """
        union = raw.get("_class_name") == "ControlNetUnionModel"
        own: dict[str, Any] = {
            "conditioning_channels": 3,
            "conditioning_embedding_out_channels": (48, 96, 192, 384) if union else (16, 32, 96, 256),
            "controlnet_conditioning_channel_order": "rgb",
            "global_pool_conditions": False,
        }
        if union:
            own |= {"num_control_type": 6, "num_trans_layer": 1}
            # the layers are as wide as the picture's embedding, and each token sees itself alone (`nn.controlnet`)
            widths = ("num_trans_channel", "num_proj_channel")
            raw = {name: value for name, value in raw.items() if name not in (*widths, "num_trans_head")}
        f = read_fields({name: raw[name] for name in own if name in raw}, what=what, used=own, fixed={}, inert=())
        order = f["controlnet_conditioning_channel_order"]
        if order not in ("rgb", "bgr"):
            raise CheckpointError(
                f"{what}: controlnet_conditioning_channel_order={order!r} is not supported, only 'rgb' or 'bgr'"
            )
        of_unet = {name: value for name, value in raw.items() if name not in own}
        down = raw.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
        of_unet["up_block_types"] = ["UpBlock2D"] * len(down)
        return cls(
            unet=UNetConfig.from_json(of_unet, what),
            picture_channels=f["conditioning_channels"],
            embedding=tuple(f["conditioning_embedding_out_channels"]),
            bgr=order == "bgr",
            pooled=bool(f["global_pool_conditions"]),
            kinds=f.get("num_control_type", 0),
            fusing=f.get("num_trans_layer", 0),
        )


@dataclass(frozen=True)
class T2IAdapterConfig:
    """A T2I-Adapter of SDXL (Mou et al. 2023, arXiv:2302.08453): its features are added on the U-Net's way down.

    The picture, of `picture_channels`, is folded `factor` times each way into channels. Then each feature has its
    width in `channels` and so many residual blocks, `depth`; the third is half as large as those before it.
    """

    picture_channels: int
    channels: tuple[int, ...]
    factor: int
    depth: int

    kinds = 0  # as a ControlNet's

    @property
    def parts(self) -> int:
        """How many things it adds, each of which has a strength."""
        return len(self.channels)

    @classmethod
    def from_json(cls, raw: Json, what: str = "config.json") -> T2IAdapterConfig:
        """Read the config of a diffusers `T2IAdapter`. Raises CheckpointError naming the field at fault."""
        form = raw.get("adapter_type", "full_adapter")
        if form != "full_adapter_xl":
            raise CheckpointError(
                f"{what}: adapter_type={form!r} is a T2I-Adapter of Stable Diffusion 1 or 2; "
                "give one of SDXL, which is 'full_adapter_xl'"
            )
        f = read_fields(
            raw,
            what=what,
            used={
                "in_channels": 3,
                "channels": (320, 640, 1280, 1280),
                "downscale_factor": 16,
                "num_res_blocks": 2,
            },
            fixed={"adapter_type": ("full_adapter_xl",)},
            inert=(),
        )
        return cls(f["in_channels"], tuple(f["channels"]), f["downscale_factor"], f["num_res_blocks"])


@dataclass(frozen=True)
class LLLiteModule:
    """A part of a ControlNet-LLLite: `name` is what its file calls it, `layer` the U-Net's whose input it changes.

    The layer takes `width` channels. The picture goes through convolutions of these `strides`, to `embedded` channels;
    what the layer is fed is brought down to `inner`.
    """

    name: str
    layer: str
    width: int
    embedded: int
    inner: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class LLLiteConfig:
    """A ControlNet-LLLite (https://github.com/kohya-ss/sd-scripts): small networks before layers of attention."""

    modules: tuple[LLLiteModule, ...]

    kinds = 0  # as a ControlNet's
    picture_channels = 3
    parts = 1


LATENT = 8  # pixels, each way, of the latents that controls are made for

# a ControlNet's, or that of one of its kin
ControlConfig = ControlNetConfig | T2IAdapterConfig | LLLiteConfig


def _check_clip(what: str, fields: Json) -> None:
    """Raise CheckpointError for an encoder of CLIP, of pictures or of texts, that jaxl does not run."""
    if fields["hidden_act"] not in ("quick_gelu", "gelu"):
        raise CheckpointError(
            f"{what}: hidden_act={fields['hidden_act']!r} is not supported, only 'quick_gelu' or 'gelu'"
        )
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise CheckpointError(f"{what}: hidden_size={width} is not {heads} heads")


def _divide(what: str, channels: Iterable[int], parts: Iterable[int], name: str) -> None:
    """Raise CheckpointError where channels do not divide evenly into parts."""
    for width, number in zip(channels, parts, strict=True):
        if width % number:
            raise CheckpointError(f"{what}: {width} channels are not {number} {name}")


def check_pag_layers(cfg: UNetConfig, layers: Iterable[str]) -> None:
    """Raise InputError at the first name that is not one of `cfg.pag_places`."""
    for layer in layers:
        if layer not in cfg.pag_places:
            raise InputError("pag_layers", layer, nearest(layer, cfg.pag_places))


@dataclass(frozen=True)
class VAEConfig:
    """The convolutional autoencoder between images and latents (Rombach et al. 2022, arXiv:2112.10752).

    `latents_mean` and `latents_std` are one number per channel, as in Playground v2.5 (arXiv:2402.17245), or both None.
    `force_upcast` says that the published weights need more than float16's range.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_attention: bool
    force_upcast: bool

    @property
    def factor(self) -> int:
        """Pixels per latent, each way: 8 in SDXL."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def from_json(cls, raw: Json, what: str = "vae/config.json") -> VAEConfig:
        """Read a diffusers `AutoencoderKL` config. Raises CheckpointError naming the field at fault."""
        n = len(raw.get("block_out_channels", (64,)))
        f = read_fields(
            raw,
            what=what,
            used={
                "in_channels": 3,
                "out_channels": 3,
                "latent_channels": 4,
                "block_out_channels": (64,),
                "layers_per_block": 1,
                "norm_num_groups": 32,
                "scaling_factor": 0.18215,
                "latents_mean": None,
                "latents_std": None,
                "shift_factor": None,
                "use_quant_conv": True,
                "use_post_quant_conv": True,
                "mid_block_add_attention": True,
                "force_upcast": True,
            },
            fixed={
                "act_fn": ("silu", "swish"),
                "down_block_types": (("DownEncoderBlock2D",) * n,),
                "up_block_types": (("UpDecoderBlock2D",) * n,),
            },
            inert=("sample_size",),
        )
        _divide(what, f["block_out_channels"], [f["norm_num_groups"]] * n, "groups")
        mean, std = (
            None if f[name] is None else tuple(map(float, f[name])) for name in ("latents_mean", "latents_std")
        )
        if f["shift_factor"] is not None:  # the same mean for all channels
            if mean is not None:
                raise CheckpointError(
                    f"{what}: there are both shift_factor={f['shift_factor']} and latents_mean={mean}"
                )
            mean, std = ((float(number),) * f["latent_channels"] for number in (f["shift_factor"], 1.0))
        lengths = {None if each is None else len(each) for each in (mean, std)}
        if lengths not in ({None}, {f["latent_channels"]}):
            raise CheckpointError(
                f"{what}: latents_mean={mean} and latents_std={std} are not both of {f['latent_channels']} numbers"
            )
        return cls(
            in_channels=f["in_channels"],
            out_channels=f["out_channels"],
            latent_channels=f["latent_channels"],
            channels=tuple(f["block_out_channels"]),
            layers_per_block=f["layers_per_block"],
            norm_num_groups=f["norm_num_groups"],
            scaling_factor=float(f["scaling_factor"]),
            latents_mean=mean,
            latents_std=std,
            use_quant_conv=f["use_quant_conv"],
            use_post_quant_conv=f["use_post_quant_conv"],
            mid_attention=f["mid_block_add_attention"],
            force_upcast=f["force_upcast"],
        )


@dataclass(frozen=True)
class TinyVAEConfig:
    """A distilled autoencoder without norms or attention (TAESD, https://github.com/madebyollin/taesd).

    `encoder_blocks` and `decoder_blocks` are the residual blocks of each level, in the order in which they run. Its
    latents are those of the U-Net, with no scale of their own.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    encoder_width: int
    decoder_width: int
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    @property
    def factor(self) -> int:
        """Pixels per latent, each way: 8 in SDXL."""
        return 2 ** (len(self.decoder_blocks) - 1)

    @classmethod
    def from_json(cls, raw: Json, what: str = "vae/config.json") -> TinyVAEConfig:
        """Read a diffusers `AutoencoderTiny` config. Raises CheckpointError naming the field at fault."""
        f = read_fields(
            raw,
            what=what,
            used={
                "in_channels": 3,
                "out_channels": 3,
                "latent_channels": 4,
                "encoder_block_out_channels": (64,) * 4,
                "decoder_block_out_channels": (64,) * 4,
                "num_encoder_blocks": (1, 3, 3, 3),
                "num_decoder_blocks": (3, 3, 3, 1),
            },
            fixed={
                "act_fn": ("relu",),
                "upsample_fn": ("nearest",),
                "upsampling_scaling_factor": (2,),
                "scaling_factor": (1.0,),
                "shift_factor": (0.0, None),
                "force_upcast": (False,),
            },
            # magnitude and shift are for storing latents as bytes; block_out_channels repeats the decoder's
            inert=("latent_magnitude", "latent_shift", "block_out_channels"),
        )
        widths, blocks = {}, {}
        for side in ("encoder", "decoder"):
            channels, blocks[side] = tuple(f[f"{side}_block_out_channels"]), tuple(f[f"num_{side}_blocks"])
            if len(set(channels)) != 1 or len(channels) != len(blocks[side]):
                raise CheckpointError(
                    f"{what}: {side}_block_out_channels={channels} is not one width for {len(blocks[side])} levels"
                )
            widths[side] = channels[0]
        if len(blocks["encoder"]) != len(blocks["decoder"]):
            raise CheckpointError(f"{what}: num_encoder_blocks and num_decoder_blocks differ in their number of levels")
        return cls(
            in_channels=f["in_channels"],
            out_channels=f["out_channels"],
            latent_channels=f["latent_channels"],
            encoder_width=widths["encoder"],
            decoder_width=widths["decoder"],
            encoder_blocks=blocks["encoder"],
            decoder_blocks=blocks["decoder"],
        )


def read_vae_config(raw: Json, what: str = "vae/config.json") -> VAEConfig | TinyVAEConfig:
    """Read the config of either kind of autoencoder, by its `_class_name`: `AutoencoderKL` where there is none."""
    kinds = {"AutoencoderKL": VAEConfig, "AutoencoderTiny": TinyVAEConfig}
    name = raw.get("_class_name", "AutoencoderKL")
    if name not in kinds:
        raise CheckpointError(f"{what}: {name} is not supported, only {' and '.join(kinds)}")
    return kinds[name].from_json(raw, what)


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text encoder (Radford et al. 2021, arXiv:2103.00020); `projection_dim` is None without the projection.

    The pooled embedding is read at the first `eos_token_id`, or, where that is None, at the largest id: published SDXL
    configs carry an `eos_token_id` of 2 by an old mistake, and the largest id is the end token of CLIP's vocabulary.
    """

    vocab_size: int
    max_length: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    activation: str
    norm_eps: float
    projection_dim: int | None
    eos_token_id: int | None

    @classmethod
    def from_json(cls, raw: Json, what: str = "text_encoder/config.json") -> TextConfig:
        """Read a transformers `CLIPTextModel` or, by its `architectures`, `CLIPTextModelWithProjection` config."""
        f = read_fields(
            raw,
            what=what,
            used={
                "architectures": (),
                "vocab_size": 49408,
                "max_position_embeddings": 77,
                "hidden_size": 512,
                "intermediate_size": 2048,
                "num_hidden_layers": 12,
                "num_attention_heads": 8,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "projection_dim": 512,
                "eos_token_id": 49407,
            },
            fixed={"model_type": ("clip_text_model",)},
            inert=("bos_token_id", "pad_token_id", *OF_TRAINING),
        )
        _check_clip(what, f)
        return cls(
            vocab_size=f["vocab_size"],
            max_length=f["max_position_embeddings"],
            width=f["hidden_size"],
            mlp_width=f["intermediate_size"],
            layers=f["num_hidden_layers"],
            heads=f["num_attention_heads"],
            activation=f["hidden_act"],
            norm_eps=float(f["layer_norm_eps"]),
            projection_dim=f["projection_dim"] if "CLIPTextModelWithProjection" in f["architectures"] else None,
            eos_token_id=None if f["eos_token_id"] == 2 else f["eos_token_id"],
        )


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's encoder of pictures (Radford et al. 2021, arXiv:2103.00020, section 2.4), a vision transformer."""

    image_size: int
    patch_size: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    activation: str
    norm_eps: float
    projection_dim: int

    @property
    def tokens(self) -> int:
        """The number of its hidden states: one for the picture, then one for each patch."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_json(cls, raw: Json, what: str = "image_encoder/config.json") -> VisionConfig:
        """Read a `CLIPVisionModelWithProjection` config. Raises CheckpointError naming the field at fault."""
        f = read_fields(
            raw,
            what=what,
            used={
                "image_size": 224,
                "patch_size": 32,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "projection_dim": 512,
            },
            fixed={"model_type": ("clip_vision_model",), "num_channels": (3,)},
            inert=("architectures", *OF_TRAINING),
        )
        _check_clip(what, f)
        if f["image_size"] % f["patch_size"]:
            raise CheckpointError(f"{what}: image_size={f['image_size']} is not patches of {f['patch_size']}")
        return cls(
            image_size=f["image_size"],
            patch_size=f["patch_size"],
            width=f["hidden_size"],
            mlp_width=f["intermediate_size"],
            layers=f["num_hidden_layers"],
            heads=f["num_attention_heads"],
            activation=f["hidden_act"],
            norm_eps=float(f["layer_norm_eps"]),
            projection_dim=f["projection_dim"],
        )


@dataclass(frozen=True)
class ResamplerConfig:
    """The part of IP-Adapter Plus that reads a picture's hidden states: layers in which tokens attend to them."""

    width: int
    layers: int
    heads: int
    mlp_width: int


@dataclass(frozen=True)
class IPAdapterConfig:
    """An IP-Adapter (Ye et al. 2023, arXiv:2308.06721): what makes so many `tokens` of a picture, of `token_width`.

    They are made of the encoder's hidden states by a `resampler` (Plus), or of its embedding if that is None.
    """

    encoder: VisionConfig
    tokens: int
    token_width: int
    resampler: ResamplerConfig | None
