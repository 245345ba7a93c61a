"""The options of AUTOMATIC1111's web UI, as requests override them: obeyed, refused or passed over.

The web UI passes over names that it does not know; so do these routes. Options that would change a picture are obeyed
or refused by name. Names and defaults are those of version 1.10 (`modules/shared_options.py`), and some of Forge's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxl.diffusion.other_noise import A1111_SOURCES
from jaxl.errors import InputError
from jaxl.server.errors import ApiError

MODEL, CLIP_SKIP, RANDN_SOURCE = "sd_model_checkpoint", "CLIP_stop_at_last_layers", "randn_source"
ENSD = "eta_noise_seed_delta"
# the default of RANDN_SOURCE, which clients send without meaning it
USUAL_SOURCE = "GPU"
# what is asked for with options that noise of other programs alone has
USUAL_NOISE = {"noise": A1111_SOURCES[USUAL_SOURCE]}

# SDXL reads the second-to-last layer of its text encoders; 1 asks for the last one of Stable Diffusion 1, which the web
# UI overrules for SDXL too
USUAL_CLIP_SKIP, MAX_CLIP_SKIP = 2, 12

# options that change pictures, and the values that change nothing here
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "emphasis": ("Original",),
    "sd_vae": ("Automatic", "None"),
    "sd_vae_encode_method": ("Full",),
    "sd_vae_decode_method": ("Full",),
    "sd_unet": ("Automatic", "None"),
    "sd_hypernetwork": ("None",),
    "sd_noise_schedule": ("Default",),
    "fp8_storage": ("Disable",),
    "forge_additional_modules": ([],),
    "forge_try_reproduce": ("None",),
    "samples_format": ("png",),
    "upscaler_for_img2img": ("None",),
    "img2img_background_color": ("#ffffff",),
    "comma_padding_backtrack": (20,),
    "ddim_discretize": ("uniform",),
    "uni_pc_variant": ("bh1",),
    "uni_pc_skip_type": ("time_uniform",),
    "uni_pc_order": (3,),
    "uni_pc_lower_order_final": (True,),
    "beta_dist_alpha": (0.6,),
    "beta_dist_beta": (0.6,),
    "enable_batch_seeds": (True,),
    "overlay_inpaint": (True,),
    "initial_noise_multiplier": (1,),
    "inpainting_mask_weight": (1,),
    "eta_ancestral": (1,),
    "s_noise": (1,),
    **dict.fromkeys(
        (
            "eta_ddim",
            "img2img_extra_noise",
            "rho",
            "s_churn",
            "s_min_uncond",
            "s_tmax",
            "s_tmin",
            "sdxl_crop_left",
            "sdxl_crop_top",
            "sigma_max",
            "sigma_min",
            "skip_early_cond",
            "token_merging_ratio",
            "token_merging_ratio_img2img",
        ),
        (0,),
    ),
    **dict.fromkeys(
        (
            "always_discard_next_to_last_sigma",
            "enable_quantization",
            "face_restoration",
            "img2img_color_correction",
            "img2img_fix_steps",
            "no_dpmpp_sde_batch_determinism",
            "pad_cond_uncond",
            "pad_cond_uncond_v0",
            "s_min_uncond_all",
            "sdxl_clip_l_skip",
            "sgm_noise_multiplier",
            "tiling",
            "use_downcasted_alpha_bar",
            "use_old_emphasis_implementation",
            "use_old_karras_scheduler_sigmas",
            "use_old_scheduling",
        ),
        (False,),
    ),
}
# options that each request has as a field
AS_FIELDS = {
    "eta_ancestral": "eta",
    "eta_ddim": "eta",
    **{name: name for name in ("s_churn", "s_tmin", "s_tmax", "s_noise")},
}


def overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Pipeline.generate` for options. Raises ApiError for options that jaxl lacks.

    The `model` is as the client calls it.
    """
    for name, value in options.items():
        neutral = NEUTRAL.get(name)
        # clients keep numbers as texts, too
        if neutral is None or value in (None, "", *neutral) or str(value).lower() in [str(n).lower() for n in neutral]:
            continue
        remedy = f"send the field {AS_FIELDS[name]}" if name in AS_FIELDS else "it cannot be chosen here"
        raise refusal(name, value, f"{remedy}; leave it out, or give {neutral[0]!r}")
    source = options.get(RANDN_SOURCE) or USUAL_SOURCE
    if source not in A1111_SOURCES:
        raise refusal(RANDN_SOURCE, source, f"give one of {', '.join(A1111_SOURCES)}, or leave it out")
    noise: dict[str, Any] = {} if source == USUAL_SOURCE else {"noise": A1111_SOURCES[source]}
    if delta := options.get(ENSD):
        try:
            delta = int(delta)
        except (TypeError, ValueError):
            raise refusal(ENSD, delta, "give a whole number") from None
        noise = {**USUAL_NOISE, **noise, ENSD: delta} if delta else noise
    skip = options.get(CLIP_SKIP)
    model = {"model": options[MODEL]} if options.get(MODEL) else {}
    return {**noise, **model, **({} if skip is None else clip_skip(CLIP_SKIP, skip))}


def clip_skip(name: str, value: Any) -> dict[str, int]:
    """Return the argument of `Pipeline.generate` for layers as the web UI counts them. Raises ApiError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_CLIP_SKIP:
        raise refusal(name, value, f"give a whole number from 1 to {MAX_CLIP_SKIP}")
    return {"clip_skip": value - USUAL_CLIP_SKIP} if value > USUAL_CLIP_SKIP else {}


def refusal(name: str, value: Any, remedy: str) -> ApiError:
    return ApiError(422, str(InputError(name, value, remedy)), param=name)
