"""A checkpoint's structure: its networks' configurations, its scheduler, and the shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxl.config import Json, TextConfig, TinyVAEConfig, UNetConfig, VAEConfig, read_vae_config
from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.errors import CheckpointError, InputError
from jaxl.kernels import XLA, Kernels
from jaxl.nn.clip import clip_shapes
from jaxl.nn.layers import Shapes
from jaxl.nn.tiny_vae import tiny_vae_shapes
from jaxl.nn.unet import unet_shapes
from jaxl.nn.vae import vae_shapes
from jaxl.presets import PRESETS, Preset


@dataclass(frozen=True)
class Model:
    """A model's structure, hashable, so that it is a static part of every program.

    `text_encoder` is None in the refiner, which reads only the second one. `zero_negative` says that a missing negative
    prompt means zeros rather than the encoded empty text. `preview` is a small autoencoder for pictures of images in
    the making. `kernels` are the forms of the operations on the platform of the networks.
    """

    unet: UNetConfig
    vae: VAEConfig | TinyVAEConfig
    text_encoder: TextConfig | None
    text_encoder_2: TextConfig
    scheduler: SchedulerConfig
    zero_negative: bool
    preview: TinyVAEConfig | None = None
    kernels: Kernels = XLA

    @classmethod
    def from_configs(cls, configs: Mapping[str, Json], kernels: Kernels = XLA) -> Model:
        """Read a checkpoint's JSON files, by component. Raises CheckpointError naming file and field."""
        if "vae" not in configs:
            raise CheckpointError("the checkpoint has no VAE; give one as `vae`")
        first, index = configs.get("text_encoder"), configs.get("model_index", {})
        preview = configs.get("preview")
        model = cls(
            unet=UNetConfig.from_json(configs["unet"]),
            vae=read_vae_config(configs["vae"]),
            text_encoder=None if first is None else TextConfig.from_json(first, "text_encoder/config.json"),
            text_encoder_2=TextConfig.from_json(configs["text_encoder_2"], "text_encoder_2/config.json"),
            scheduler=read_scheduler_config(configs["scheduler"]),
            zero_negative=bool(index.get("force_zeros_for_empty_prompt", True)),
            preview=None if preview is None else TinyVAEConfig.from_json(preview, "preview/config.json"),
            kernels=kernels,
        )
        width = sum(text.width for text in model.text_encoders.values())
        if width != model.unet.cross_attention_dim:
            raise CheckpointError(
                f"unet/config.json: cross_attention_dim={model.unet.cross_attention_dim}, "
                f"but the text encoders are {width} wide together"
            )
        if model.text_encoder_2.projection_dim is None:
            raise CheckpointError(
                "text_encoder_2/config.json: no text projection; SDXL needs CLIPTextModelWithProjection"
            )
        rest = model.unet.projection_input_dim - model.text_encoder_2.projection_dim
        if rest not in (5 * model.unet.addition_time_embed_dim, 6 * model.unet.addition_time_embed_dim):
            raise CheckpointError(
                f"unet/config.json: projection_class_embeddings_input_dim={model.unet.projection_input_dim} leaves "
                f"room for {rest / model.unet.addition_time_embed_dim:g} size ids; SDXL has 6, its refiner 5"
            )
        _check_channels(model.unet, model.vae)
        return model

    @property
    def structure(self) -> Model:
        """The part that programs know: how a model is sampled, and what no prompt means, are told when they run."""
        return replace(self, scheduler=SchedulerConfig(), zero_negative=True)

    @property
    def text_encoders(self) -> dict[str, TextConfig]:
        encoders = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: cfg for name, cfg in encoders.items() if cfg is not None}

    @property
    def time_ids(self) -> int:
        """Number of size ids of an image: 6, or 5 with an aesthetic score in place of the target size (refiner)."""
        room = self.unet.projection_input_dim - (self.text_encoder_2.projection_dim or 0)
        return room // self.unet.addition_time_embed_dim

    @property
    def is_refiner(self) -> bool:
        return self.time_ids == 5

    @property
    def inpaints(self) -> bool:
        """True if the network was trained to see the mask and the masked picture."""
        return self.unet.in_channels == inpainting_channels(self.vae)

    @property
    def default_size(self) -> int:
        """Height and width the checkpoint was trained for, in pixels."""
        return self.unet.sample_size * self.vae.factor

    def parts(self, height: int) -> int:
        """Return into how many parts of equal rows a picture can be split so that all levels of the U-Net can."""
        return 1 if height % self.multiple else height // self.multiple

    @property
    def multiple(self) -> int:
        """Pixels of a place at the lowest level of the U-Net, each way."""
        return self.vae.factor * 2 ** (len(self.unet.down) - 1)

    @property
    def preset(self) -> Preset:
        """The settings with which the checkpoint should be sampled, as far as its configs tell."""
        if self.unet.time_cond_proj_dim is not None:
            # distilled with scales of 2 to 14, and takes the scale as an input
            return replace(PRESETS["lcm"], guidance_scale=8.0)
        scheduler = self.scheduler.scheduler
        if scheduler in ("lcm", "tcd"):
            return PRESETS[scheduler]
        if scheduler == "euler_a" and self.scheduler.timestep_spacing == "trailing":
            return PRESETS["turbo"]
        if scheduler.startswith("edm_"):
            return PRESETS["playground"]
        return PRESETS["sdxl"]

    def vae_dtype(self, dtype: DTypeLike) -> DTypeLike:
        """Return the autoencoder's dtype beside networks of `dtype`: float32 if its config has `force_upcast`."""
        return jnp.float32 if isinstance(self.vae, VAEConfig) and self.vae.force_upcast else dtype

    def shapes(self, dtype: DTypeLike = jnp.bfloat16, vae_dtype: DTypeLike | None = None) -> dict[str, Shapes]:
        """Return each component's parameter tree of `jax.ShapeDtypeStruct`; autoencoders may have their own dtype."""
        return {
            "unet": unet_shapes(self.unet, dtype),
            "vae": _vae_shapes(self.vae, vae_dtype or dtype),
            **{name: clip_shapes(cfg, dtype) for name, cfg in self.text_encoders.items()},
            **({"preview": _vae_shapes(self.preview, vae_dtype or dtype)} if self.preview else {}),
        }


def read_dtype(argument: str, value: DTypeLike, auto: DTypeLike) -> np.dtype:
    """Return bfloat16 or float32, or `auto` for "auto". Raises InputError for others."""
    if value == "auto":
        return jnp.dtype(auto)
    if value not in (jnp.bfloat16, jnp.float32, "bfloat16", "float32"):
        raise InputError(argument, value, "use jax.numpy.bfloat16 or jax.numpy.float32")
    return jnp.dtype(value)


def inpainting_channels(vae: VAEConfig | TinyVAEConfig) -> int:
    """Return the input channels of a network that sees the masked picture: latents twice, and the mask."""
    return 2 * vae.latent_channels + 1


def _check_channels(unet: UNetConfig, vae: VAEConfig | TinyVAEConfig) -> None:
    """Raise CheckpointError where pictures, latents and the U-Net do not fit each other."""
    latents, inpainting = vae.latent_channels, inpainting_channels(vae)
    if (vae.in_channels, vae.out_channels) != (3, 3):
        raise CheckpointError(
            f"vae/config.json: in_channels={vae.in_channels} and out_channels={vae.out_channels}, but pictures have 3"
        )
    if unet.in_channels not in (latents, inpainting):
        edits = "; 8 are those of InstructPix2Pix and CosXL Edit, which jaxl does not run"
        raise CheckpointError(
            f"unet/config.json: in_channels={unet.in_channels}; only {latents}, or {inpainting} for inpainting, "
            f"are known{edits if unet.in_channels == 8 else ''}"
        )
    if unet.out_channels != latents:
        raise CheckpointError(
            f"unet/config.json: out_channels={unet.out_channels}, but the VAE's latents have {latents} channels"
        )


def _vae_shapes(cfg: VAEConfig | TinyVAEConfig, dtype: DTypeLike) -> Shapes:
    return tiny_vae_shapes(cfg, dtype) if isinstance(cfg, TinyVAEConfig) else vae_shapes(cfg, dtype)
