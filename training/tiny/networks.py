"""The five parts' configurations, SDXL's prompt embedding, and saving in the layout of published SDXL checkpoints."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

# diffusers' annotations do not say what these classes' methods return
Vae = Any  # AutoencoderKL
Pipeline = Any  # StableDiffusionXLPipeline
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
LATENT_CHANNELS, LATENT_SIZE = 4, 32
SCALING_FACTOR = 0.13025  # SDXL's own; the trained latents are rescaled to fit it

VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "sample_size": 256,
    "scaling_factor": SCALING_FACTOR,
    "force_upcast": False,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
    "bos_token_id": 2046,
    "eos_token_id": 2047,
    "pad_token_id": 2047,
}
TEXT_2_CONFIG: dict[str, Any] = {
    **TEXT_CONFIG,
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "projection_dim": 192,
    "pad_token_id": 0,
}
TIME_ID_WIDTH = 32
UNET_CONFIG: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 96, 128),
    "layers_per_block": 2,
    "attention_head_dim": (2, 3, 4),  # diffusers reads this as the number of heads; each is 32 wide
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": TEXT_CONFIG["hidden_size"] + TEXT_2_CONFIG["hidden_size"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_ID_WIDTH,
    "projection_class_embeddings_input_dim": TEXT_2_CONFIG["projection_dim"] + 6 * TIME_ID_WIDTH,
    "norm_num_groups": 32,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


class Denoiser(nn.Module):
    """Both text encoders and the UNet: what is trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder: Any = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
        self.text_encoder_2: Any = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2_CONFIG))
        self.unet: Any = UNet2DConditionModel(**UNET_CONFIG)

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, 2, 77] (one row per tokenizer) -> context [B, 77, 320] and pooled embedding [B, 192].

        As SDXL has it: both encoders' second-to-last hidden states side by side, and the second one's projection.
        """
        first = self.text_encoder(ids[:, 0], output_hidden_states=True)
        second = self.text_encoder_2(ids[:, 1], output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, time_ids: Tensor, keep: Tensor) -> Tensor:
        """The predicted noise; `keep` [B] is 0 where the text embeddings are to be replaced by zeros, else 1."""
        context, pooled = self.embed(ids)
        conditions = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
        context = context * keep[:, None, None]
        return self.unet(latents, timesteps, context, added_cond_kwargs=conditions, return_dict=False)[0]


def new_scheduler() -> Any:
    """SDXL's noise schedule and sampler."""
    return EulerDiscreteScheduler(**SCHEDULER_CONFIG)


def load_denoiser(checkpoint: Path) -> Denoiser:
    """The text encoders and the UNet of a saved checkpoint, in float32."""
    denoiser = Denoiser()
    denoiser.text_encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").float()
    denoiser.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(checkpoint / "text_encoder_2").float()
    denoiser.unet.load_state_dict(load_file(checkpoint / "unet" / WEIGHTS_FILE))
    return denoiser.train()


def new_vae() -> Vae:
    """An autoencoder with random weights."""
    return AutoencoderKL(**VAE_CONFIG)


def load_vae(folder: Path) -> Vae:
    """The autoencoder train_vae.py saved, in float32."""
    vae = new_vae()
    vae.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return vae


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """`tokenizer` and `tokenizer_2` of build_tokenizer.py."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), CLIPTokenizer.from_pretrained(folder / "tokenizer_2")


def to_float16(module: nn.Module) -> None:
    """Make the weights (in place) what a checkpoint holds. Raises ValueError where one does not fit float16."""
    module.half().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for name, value in module.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite in float16: the training has diverged")


def load_pipeline(checkpoint: Path) -> Pipeline:
    """The whole of a saved checkpoint as diffusers runs it, in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_checkpoint(folder: Path, denoiser: Denoiser, vae: Vae, tokenizers: Path) -> None:
    """Write the whole pipeline in float16. The denoiser and the vae are converted in place."""
    to_float16(denoiser)
    to_float16(vae)
    tokenizer, tokenizer_2 = load_tokenizers(tokenizers)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=denoiser.unet,
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):  # the classic vocab.json and merges.txt, which any release can read
        shutil.rmtree(folder / name)
        shutil.copytree(tokenizers / name, folder / name)
    for name in ("text_encoder", "text_encoder_2"):
        use_published_names(folder / name / "model.safetensors")


def use_published_names(file: Path) -> None:
    """Put a text encoder's weights under `text_model.`, as every published SDXL checkpoint has them.

    transformers 5 writes them without that prefix where the model was not loaded from such a file.
    """
    prefixes = ("text_model.", "text_projection.")
    weights = load_file(file)
    named = {name if name.startswith(prefixes) else prefixes[0] + name: value for name, value in weights.items()}
    save_file(named, file, metadata={"format": "pt"})
