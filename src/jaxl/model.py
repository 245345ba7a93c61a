"""What a checkpoint is: its networks' configurations, its scheduler, and the shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxl.config import Json, TextConfig, UNetConfig, VAEConfig
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.errors import CheckpointError
from jaxl.nn.clip import clip_shapes
from jaxl.nn.layers import Shapes
from jaxl.nn.unet import unet_shapes
from jaxl.nn.vae import vae_shapes


@dataclass(frozen=True)
class Model:
    """Hashable, so that it is a static part of every program.

    `text_encoder` is None in the refiner, which reads only the second one. `zero_negative` says that a negative prompt
    that is not given means zeros rather than the encoded empty text.
    """

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: TextConfig | None
    text_encoder_2: TextConfig
    scheduler: SchedulerConfig
    zero_negative: bool

    @classmethod
    def from_configs(cls, configs: Mapping[str, Json]) -> Model:
        """Read a checkpoint's JSON files, by component; raises CheckpointError naming file and field."""
        first, index = configs.get("text_encoder"), configs.get("model_index", {})
        model = cls(
            unet=UNetConfig.from_json(configs["unet"]),
            vae=VAEConfig.from_json(configs["vae"]),
            text_encoder=None if first is None else TextConfig.from_json(first, "text_encoder/config.json"),
            text_encoder_2=TextConfig.from_json(configs["text_encoder_2"], "text_encoder_2/config.json"),
            scheduler=SchedulerConfig.from_json(configs["scheduler"]),
            zero_negative=bool(index.get("force_zeros_for_empty_prompt", True)),
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
        if model.time_ids not in (5, 6):
            raise CheckpointError(
                f"unet/config.json: projection_class_embeddings_input_dim={model.unet.projection_input_dim} leaves "
                f"room for {model.time_ids} size ids; SDXL has 6, its refiner 5"
            )
        return model

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
    def default_size(self) -> int:
        """Height and width the checkpoint was trained for, in pixels."""
        return self.unet.sample_size * self.vae.factor

    def shapes(self, dtype: DTypeLike = jnp.bfloat16) -> dict[str, Shapes]:
        """The parameter tree of each component, as `jax.ShapeDtypeStruct`."""
        return {
            "unet": unet_shapes(self.unet, dtype),
            "vae": vae_shapes(self.vae, dtype),
            **{name: clip_shapes(cfg, dtype) for name, cfg in self.text_encoders.items()},
        }
