"""A whole SDXL in one `.safetensors`, in the original layout, which most fine-tunes have.

Base, refiner and nine-channel inpainting models, SSD-1B, Segmind-Vega and KOALA are told apart by keys and shapes, and
the configs that such a file lacks are made from these. Only the header is read: tensors are renamed, cut,
reshaped or transposed as views of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxl.config import UNetConfig
from jaxl.errors import CheckpointError
from jaxl.presets import is_sdxl_turbo
from jaxl.weights import kinds
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.diffusers_unet import diffusers_unet_layout
from jaxl.weights.folder import Part
from jaxl.weights.original_layout import Layout, TensorShapes, clip_layout, openclip_layout, vae_layout
from jaxl.weights.original_unet import unet_layout
from jaxl.weights.prediction import FLOW_SCHEDULER, find_prediction
from jaxl.weights.store import Tensor, read_metadata
from jaxl.weights.tensors import put, read_tensors, with_outer_name

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
REFINER_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder_2": "conditioner.embedders.0.model.",
}
# the prefixes that names of a U-Net may have, alone or in a larger file
UNET_PREFIXES = (PREFIXES["unet"], "diffusion_model.", "unet.", "")
# the vector conditioning, which SDXL has and Stable Diffusion 1 and 2 do not
SDXL_MARK = "model.diffusion_model.label_emb."

# leftovers of training and of other programs, which no picture needs
IGNORED = re.compile(
    "|".join(
        (
            r"model_ema\..*",
            r"denoiser\..*",
            r"first_stage_model\.(loss|model_ema)\..*",
            r"(.*\.)?(logit_scale|position_ids)",
            # SDXL takes the pooled prompt from the other encoder
            r"conditioner\.embedders\.0\.(transformer\.text_projection\.weight|text_projection)",
            # the noise schedule of the training
            r"betas|alphas_cumprod(_prev)?|(sqrt|sqrt_recip|sqrt_recipm1|sqrt_one_minus|log_one_minus)_alphas_cumprod",
            r"posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|logvar|lvlb_weights",
            # marks of velocity prediction and of EDM noise; `_scheduler_config` reads them
            r"v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.sigma_(max|min)",
        )
    )
)

# as the folders of these models have them
PLAYGROUND_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "final_sigmas_type": "zero",
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
}
COSXL_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
}


def read_single_file(file: Path) -> Checkpoint:
    """Open a single-file SDXL checkpoint; its tensors stay unread.

    `weights.prediction` finds the prediction type. A tensor `ztsnr` beside `v_pred` marks a model that was trained to
    zero terminal signal-to-noise ratio (ComfyUI's convention), `edm_*` the noise of Playground v2.5 and CosXL. The VAE
    may be missing: some files leave it to the user. Raises CheckpointError, in one line, if the file is something else
    than SDXL (it says what), lacks another network, has an unknown key or a tensor twice, or if no config fits its
    shapes.
    """
    return checkpoint_of(file, read_tensors(file), read_metadata(file))


def checkpoint_of(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    """Return the checkpoint that a file with these tensors and this metadata is; see `read_single_file`."""
    _refuse_others(file, tensors)
    refiner = any(key.startswith(REFINER_PREFIXES["text_encoder_2"]) for key in tensors)
    parts = _split(file, tensors, REFINER_PREFIXES if refiner else PREFIXES)

    layouts: dict[str, Layout] = {}

    def lay_out(component: str, layout: Callable[[TensorShapes], Layout]) -> None:
        try:
            layouts[component] = layout({key: tensor.shape for key, tensor in parts[component].items()})
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {component}: {error}") from error

    if not refiner:
        lay_out("text_encoder", clip_layout)
    lay_out("text_encoder_2", openclip_layout)
    if "vae" in parts:
        lay_out("vae", vae_layout)
    pooled_dim = layouts["text_encoder_2"].config["projection_dim"]
    lay_out("unet", lambda shapes: unet_layout(shapes, pooled_dim, time_ids=5 if refiner else 6))

    configs = {component: layout.config for component, layout in layouts.items()}
    prediction, predicts_by = find_prediction(file, tensors, metadata)
    scheduler = _scheduler_config(tensors, prediction)
    if "edm_mean" in tensors and "vae" in configs:
        mean, std = (_numbers(tensors[key]) for key in ("edm_mean", "edm_std"))
        configs["vae"] = {**configs["vae"], "latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    if is_sdxl_turbo(file.name):
        configs["unet"] = {**configs["unet"], "sample_size": 64}
    return Checkpoint(
        source=str(file),
        configs={
            **configs,
            "scheduler": scheduler,
            "model_index": _model_index(file, layouts["unet"].config, refiner, scheduler["_class_name"]),
        },
        tensors={component: _placed(file, layout, parts[component]) for component, layout in layouts.items()},
        tokenizers={"tokenizer_2": None} if refiner else {"tokenizer": None, "tokenizer_2": None},
        predicts_by="its EDM marks" if scheduler["_class_name"].startswith("EDM") else predicts_by,
    )


def read_vae_file(file: Path) -> Part:
    """Open a VAE in the original layout, on its own or in a single-file SDXL checkpoint; its tensors stay unread.

    Nothing in such a file tells SDXL's VAE from that of Stable Diffusion 1: it is taken for SDXL's. Raises
    CheckpointError, in one line, if the file holds no VAE, one in diffusers' names, an unknown key or a tensor twice.
    """
    tensors, prefix = read_tensors(file), PREFIXES["vae"]
    found = kinds.kind(tensors)
    if any(key.startswith(PREFIXES["unet"]) for key in tensors):
        _refuse_others(file, tensors)
        found = "an SDXL checkpoint without one"
        tensors = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if not any(re.match(kinds.VAE, key) for key in tensors):
        raise CheckpointError(f"{file}: not a VAE in the original layout but {found}")
    if not any(key.startswith(prefix) for key in tensors):
        tensors = {prefix + key: tensor for key, tensor in tensors.items()}
    part = _split(file, tensors, {"vae": prefix})["vae"]
    try:
        layout = vae_layout({key: tensor.shape for key, tensor in part.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{file}: vae: {error}") from error
    return Part(str(file), layout.config, _placed(file, layout, part))


def read_unet_file(file: Path, own: Mapping[str, Any], pooled_dim: int, time_ids: int) -> Part:
    """Open a U-Net, on its own or in a larger file, in the original or in diffusers' names; its tensors stay unread.

    It replaces a U-Net whose config is `own`, beside an encoder whose pooled prompt is `pooled_dim` wide. If both have
    the same structure, settings that no shape tells are taken from `own`. Raises CheckpointError, in one line, if the
    file holds no U-Net of SDXL's kind.
    """
    tensors = read_tensors(file)
    layout_of = {"input_blocks.": unet_layout, "down_blocks.": diffusers_unet_layout}
    marks = ((prefix, first) for prefix in UNET_PREFIXES for first in layout_of)
    prefix, first = next((m for m in marks if any(key.startswith("".join(m)) for key in tensors)), ("", ""))
    part = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix) and not IGNORED.fullmatch(key)
    }
    if not first or kinds.other(tensors) or not any(key.startswith(("label_emb.", "add_embedding.")) for key in part):
        raise CheckpointError(f"{file}: not a U-Net of SDXL but {kinds.kind(tensors)}")
    if "edm_mean" in tensors:
        raise CheckpointError(f"{file}: its latents are those of Playground v2.5; give the whole of it as `model`")
    try:
        layout = layout_of[first]({key: tensor.shape for key, tensor in part.items()}, pooled_dim, time_ids)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: unet: {error}") from error
    found, known = UNetConfig.from_json(layout.config), UNetConfig.from_json(own)
    untold = {name: getattr(known, name) for name in ("heads", "norm_num_groups", "norm_eps", "sample_size")}
    config = own if replace(found, **untold) == known else layout.config
    prediction, predicts_by = find_prediction(file, tensors, read_metadata(file))
    scheduler = _scheduler_config(tensors, prediction)
    said = scheduler != _scheduler_config({}, "epsilon")
    return Part(
        str(file),
        config,
        _placed(file, layout, part),
        scheduler=scheduler if said else None,
        predicts_by=predicts_by if said else None,
    )


def _refuse_others(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, saying what the file is, if it is not SDXL."""
    if not any(key.startswith(SDXL_MARK) for key in tensors):
        raise CheckpointError(f"{file}: not an SDXL checkpoint but {kinds.kind(tensors)}")


def _split(file: Path, tensors: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Return each network's tensors, by their keys without its prefix."""
    kept = {key: tensor for key, tensor in tensors.items() if not IGNORED.fullmatch(key)}
    parts = {
        component: {key.removeprefix(prefix): tensor for key, tensor in kept.items() if key.startswith(prefix)}
        for component, prefix in prefixes.items()
    }
    lacking = [component for component, part in parts.items() if not part]
    if any(component != "vae" for component in lacking):
        missing = " and no ".join(f"{component} ({prefixes[component]}*)" for component in lacking)
        way = "give it as `unet`, with a whole SDXL as `model`"
        raise CheckpointError(f"{file}: the file has no {missing}; {way}")
    for key in kept:
        if not key.startswith(tuple(prefixes.values())):
            raise CheckpointError(f"{file}: {kept[key].key} is not a tensor of SDXL")
    if "text_encoder" in parts:
        parts["text_encoder"] = with_outer_name(parts["text_encoder"])
    return {component: part for component, part in parts.items() if part}


def _placed(file: Path, layout: Layout, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors by their diffusers keys."""
    placed: dict[str, Tensor] = {}
    for key, tensor in part.items():
        if key not in layout.names:
            raise CheckpointError(f"{file}: {tensor.key} is not a tensor of SDXL")
        names = layout.names[key]
        for name, view in zip(names, _views(key, tensor, len(names)), strict=True):
            put(placed, name, view)
    return placed


def _views(key: str, tensor: Tensor, parts: int) -> list[Tensor]:
    """Return the tensor as diffusers has it: query, key and value apart, linear layers for 1x1 convolutions."""
    if parts > 1:
        if not tensor.shape or tensor.shape[0] % parts:
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} has shape {tensor.shape}, not query, key and value in one"
            )
        rows = tensor.shape[0] // parts
        return [tensor.rows(i * rows, (i + 1) * rows) for i in range(parts)]
    if key == "text_projection":
        return [tensor.T]
    if ".attn_1." in key and tensor.shape[2:] == (1, 1):
        return [tensor.reshape(tensor.shape[:2])]
    return [tensor]


def _numbers(tensor: Tensor) -> list[float]:
    return tensor.read().astype(np.float64).ravel().tolist()


def _scheduler_config(tensors: Mapping[str, Tensor], prediction: str) -> dict[str, Any]:
    """Return SDXL's published scheduler config, changed as the file's marks ask."""
    if "edm_mean" in tensors:
        return {**PLAYGROUND_SCHEDULER}
    if "edm_vpred.sigma_max" in tensors:
        lowest = tensors.get("edm_vpred.sigma_min")
        return {
            **COSXL_SCHEDULER,
            "sigma_max": _numbers(tensors["edm_vpred.sigma_max"])[0],
            **({} if lowest is None else {"sigma_min": _numbers(lowest)[0]}),
        }
    if prediction == "flow":
        return {**FLOW_SCHEDULER}
    return {
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": {"v_pred", "ztsnr"} <= set(tensors),
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    }


def _model_index(file: Path, unet: Mapping[str, Any], refiner: bool, scheduler: str) -> dict[str, Any]:
    """Return the `model_index.json` of the model's family."""
    families = {4: "StableDiffusionXLPipeline", 9: "StableDiffusionXLInpaintPipeline"}
    channels = unet["in_channels"]
    if channels not in families:
        raise CheckpointError(f"{file}: the U-Net takes {channels} channels; only 4, or 9 for inpainting, are known")
    first_encoder = [None, None] if refiner else ["transformers", "CLIPTextModel"]
    return {
        "_class_name": "StableDiffusionXLImg2ImgPipeline" if refiner else families[channels],
        "force_zeros_for_empty_prompt": not refiner,
        **({"requires_aesthetics_score": True} if refiner else {}),
        "scheduler": ["diffusers", scheduler],
        "text_encoder": first_encoder,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": [None, None] if refiner else ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
