"""Facts about published models: SDXL's configs, and the sampling settings of its fast relatives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxl.errors import InputError, nearest

__all__ = ["PRESETS", "SPEEDS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """Settings that a caller leaves open. None leaves them to the checkpoint; `eta` goes with `scheduler`.

    `reason` says why the preset was chosen.
    """

    name: str
    steps: int = 25
    guidance_scale: float = 5.0
    scheduler: str | None = None
    eta: float | None = None
    timestep_spacing: str | None = None
    reason: str = field(default="by the checkpoint's configs", compare=False)

    def __str__(self) -> str:
        scheduler = self.scheduler or "the checkpoint's scheduler"
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f"{self.name}, {self.reason}: {steps}, guidance {self.guidance_scale:g}, {scheduler}"


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("sdxl"),
        # Sauer et al. 2023, arXiv:2311.17042: 1 to 4 steps without guidance
        Preset("turbo", 1, 1.0, "euler_a", timestep_spacing="trailing"),
        # fine-tunes that contain SDXL-Turbo, as the cards of DreamShaper XL and TurboVision XL ask for
        Preset("turbo_finetune", 6, 2.0, "dpm++sde_karras"),
        # Lin et al. 2024, arXiv:2402.13929: 2, 4 or 8 steps, those for which the weights were distilled
        Preset("lightning", 4, 1.0, "euler", timestep_spacing="trailing"),
        # Ren et al. 2024, arXiv:2404.13686: TCD's sampler for any number of steps
        Preset("hyper", 4, 1.0, "tcd", eta=1.0),
        # Luo et al. 2023, arXiv:2310.04378 and 2311.05556
        Preset("lcm", 4, 1.0, "lcm"),
        # Zheng et al. 2024, arXiv:2402.19159
        Preset("tcd", 4, 1.0, "tcd"),
        # Yin et al. 2024, arXiv:2405.14867
        Preset("dmd2", 4, 1.0, "lcm"),
        # Wang et al. 2024, arXiv:2405.18407
        Preset("pcm", 4, 1.0, "ddim", timestep_spacing="trailing"),
        # Li et al. 2024, arXiv:2402.17245
        Preset("playground", 25, 3.0),
    )
}
"""The presets by their names, which `preset=` takes."""


def preset(name: str) -> Preset:
    """Return the preset of this name. Raises InputError for an unknown one."""
    if name not in PRESETS:
        raise InputError("preset", name, nearest(name, PRESETS))
    return PRESETS[name]


SPEEDS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": {"cache_interval": 3},
    "fast": {"cache_interval": 5, "guidance_interval": (0.0, 0.8)},
}
"""The options that each `speed=` stands for; benchmarks/speed_and_quality.py says what they cost."""


def speed(name: str) -> Mapping[str, Any]:
    """Return the options that a speed stands for. Raises InputError for an unknown one."""
    if not isinstance(name, str) or name not in SPEEDS:
        raise InputError("speed", name, nearest(name, SPEEDS))
    return SPEEDS[name]


# Stability's own files and folder; a fine-tune has more in its name
SDXL_TURBO = re.compile(r"sd_?xl[-_]turbo([-_.](v?1[._]0|fp16|fp32|bf16|onnx|tensorrt))*")
# in the order of the search, in words with `_` between; "hyper" alone may be HyperRealism
DISTILLED: Mapping[str, re.Pattern[str]] = {
    "hyper": re.compile(
        r"(^|_)hyper(_?sd|_?sdxl)?(_(sd|sdxl|[0-9]+|v|steps?|cfg|bakedvae|baked|vae|fp|lora|unet)(_|$)|$)"
    ),
    "lightning": re.compile("lightning"),
    "dmd2": re.compile("dmd_?2"),
    "lcm": re.compile(r"(^|_)lcm|lcm(_|$)"),
    "tcd": re.compile(r"(^|_)tcd(_|$)"),
    "turbo_finetune": re.compile("turbo"),
}


# LoRAs that make other models draw in a few steps. People draw lightning and turbos too, so the words that such files
# have beside it are asked for.
DISTILLED_LORAS: Mapping[str, re.Pattern[str]] = {
    "hyper": DISTILLED["hyper"],
    "lightning": re.compile(r"xl_?lightning|lightning.*_[0-9]+_?steps?(_|$)"),
    "dmd2": DISTILLED["dmd2"],
    "lcm": DISTILLED["lcm"],
    "pcm": re.compile(r"(^|_)pcm(_|$)"),
    "tcd": DISTILLED["tcd"],
    "turbo": re.compile(r"xl_?turbo|turbo_?(xl|sdxl|lora)"),
}


def distilled_by_name(source: str) -> str | None:
    """Return the method of distillation that a LoRA's name tells of: "lcm" of "latent-consistency/lcm-lora-sdxl".

    Of a file named as diffusers names all, the folder counts.
    """
    parts = source.replace("\\", "/").rstrip("/").split("/")
    named = [part for part in parts if part != "pytorch_lora_weights.safetensors"]
    words = _words(_stem(named[-1])) if named else ""
    return next((name for name, pattern in DISTILLED_LORAS.items() if pattern.search(words)), None)


def lora_preset(source: str, method: str) -> Preset:
    """Return the preset of a LoRA that was distilled by a method, with the steps in its name."""
    words = _words(_stem(source))
    found = replace(PRESETS[method], steps=_steps(words) or PRESETS[method].steps)
    if method == "hyper" and found.steps > 1:
        # their card: each file for its own number of steps, by DDIM; the one of a single step goes with any, by TCD
        found = replace(found, scheduler="ddim", eta=None, timestep_spacing="trailing")
    return replace(found, reason=f"by the LoRA {_stem(source)!r}")


def is_sdxl_turbo(name: str) -> bool:
    """Return whether a file or a repository has the name of SDXL-Turbo itself, which was trained for 512 pixels."""
    return SDXL_TURBO.fullmatch(_stem(name).lower()) is not None


def preset_by_name(source: str) -> Preset | None:
    """Return the preset that a model's name tells of, with the steps in it: "sdxl_lightning_8step.safetensors".

    The last part of a path or a hub's id counts. Words may be set apart by capitals, as in "xlLightningBakedvae".
    """
    stem = _stem(source)
    words = _words(stem)
    told = "turbo" if is_sdxl_turbo(source) else next((name for name, p in DISTILLED.items() if p.search(words)), None)
    if told is None:
        return None
    found = PRESETS[told]
    return replace(found, steps=_steps(words) or found.steps, reason=f"by the name {stem!r}")


def choose_preset(asked: str | None, source: str, own: Preset) -> Preset:
    """Return the preset that was asked for, else the one that a model's name tells of, else `own`, its configs'."""
    if asked is not None:
        return replace(preset(asked), reason="as asked for")
    return preset_by_name(source) or own


def _steps(words: str) -> int:
    """Return the number of steps that a name tells of; 0 for none."""
    steps = re.search(r"(?<![0-9])(?<!v_)([0-9]{1,2})_steps?(_|$)", words)
    return int(steps[1]) if steps else 0


def _words(stem: str) -> str:
    """Return a name's words in lower case with `_` between; a capital letter begins one."""
    return "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", stem)).lower()


def _stem(source: str) -> str:
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".safetensors")


SDXL_BASE: dict[str, dict[str, Any]] = {
    "model_index": {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
    "unet": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
        "eos_token_id": 2,
    },
    "text_encoder_2": {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
        "eos_token_id": 49407,
    },
    "scheduler": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
}
