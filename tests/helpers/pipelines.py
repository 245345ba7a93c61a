"""jaxl beside a pipeline of diffusers: the same weights, the same noise, the mean of what a VAE encodes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch_weights import randomize, relative_error

import jaxl

TINY = Path(jaxl.__file__).parent / "models" / "tiny"

# jaxl's names beside diffusers' class and options
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_karras": (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}


@contextmanager
def noise_and_mean(noise: np.ndarray) -> Iterator[None]:
    """Inside, diffusers draws this noise [B, h, w, C] wherever it starts from a picture, and encodes to the mean."""
    drawn = torch.from_numpy(noise).permute(0, 3, 1, 2)
    modules = [
        diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img,
        diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint,
        diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl_img2img,
        diffusers.pipelines.controlnet.pipeline_controlnet_inpaint_sd_xl,
        diffusers.schedulers.scheduling_lcm,
    ]
    originals = [module.randn_tensor for module in modules], DiagonalGaussianDistribution.sample
    try:
        for module in modules:
            module.randn_tensor = lambda *_, **__: drawn.clone()
        DiagonalGaussianDistribution.sample = lambda self, *_, **__: self.mode()
        yield
    finally:
        for module, original in zip(modules, originals[0], strict=True):
            module.randn_tensor = original
        DiagonalGaussianDistribution.sample = originals[1]


def as_pipeline(kind: Any, pipe: Any, scheduler: str = "euler", **options: Any) -> Any:
    """The components of `pipe` as another kind of pipeline, with one of SCHEDULERS."""
    cls, settings = SCHEDULERS[scheduler]
    known = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
    parts = {name: pipe.components[name] for name in known}
    parts["scheduler"] = cls.from_config(pipe.scheduler.config, **settings)
    flags = {"force_zeros_for_empty_prompt": pipe.config.force_zeros_for_empty_prompt, "add_watermarker": False}
    taken = inspect.signature(kind).parameters
    made = kind(**(parts | {name: value for name, value in flags.items() if name in taken} | options))
    made.set_progress_bar_config(disable=True)
    return made


def latents_of(pipe: Any, **settings: Any) -> np.ndarray:
    """What a pipeline of diffusers ends with, [B, h, w, C]."""
    with torch.no_grad():
        return pipe(**settings, output_type="latent").images.permute(0, 2, 3, 1).numpy()


def assert_close(got: Any, wanted: np.ndarray) -> None:
    """Within 2e-4, relative; a single wrong coefficient is off by more."""
    assert relative_error(got.latents, wanted) < 2e-4


def random_pipeline(unet: dict[str, Any], scheduler_options: dict[str, Any]) -> Any:
    text = {
        "vocab_size": 2048,
        "num_hidden_layers": 3,
        "bos_token_id": 2046,
        "eos_token_id": 2047,
        "pad_token_id": 2047,
    }
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 16}
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "projection_dim": 24}
    index = transformers.CLIPTokenizer.from_pretrained
    return diffusers.StableDiffusionXLPipeline(
        unet=randomize(diffusers.UNet2DConditionModel(**unet), seed=1),  # pyright: ignore
        vae=randomize(  # pyright: ignore
            diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(16, 16, 32, 32),
                norm_num_groups=8,
                scaling_factor=0.13025,
            ),
            seed=2,
        ),
        text_encoder=randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**text, **narrow)), seed=3),
        text_encoder_2=randomize(
            transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text, **wide, hidden_act="gelu")),
            seed=4,
        ),
        tokenizer=index(TINY / "tokenizer"),
        tokenizer_2=index(TINY / "tokenizer_2"),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            **({"timestep_spacing": "leading", "steps_offset": 1} | scheduler_options),
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
