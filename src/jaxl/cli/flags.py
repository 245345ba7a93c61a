"""How arguments are called on the command line, in errors and notes."""

from __future__ import annotations

QUOTES = "'\""

# the command's names for arguments of `Pipeline.generate`, where not the same
FLAGS = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "negative_prompt_2": "--negative-2",
    "num_images": "--count",
    "guidance_scale": "--guidance",
    "height": "--size, height",
    "width": "--size, width",
    "image": "--init-image",
    "pag_scale": "--pag",
    "seg_scale": "--seg",
    "perp_neg_scale": "--perp-neg",
    "padding_mask_crop": "--mask-padding",
    "timestep_spacing": "--spacing",
    "controls": "--control",
    "image_prompts": "--image-prompt",
    "regions": "--region",
    "parts": "--region",
    "box": "--region",
    "loras": "--lora",
    **dict.fromkeys(("hires.scale", "hires.size"), "--hires"),
    "hires.negative_prompt": "--hires-negative",
    "hires.guidance_scale": "--hires-guidance",
    "strict": "--lora-partial",
    "token": "HF_TOKEN in the environment",
    **{name: name for name in ("IMAGE", "OUTPUT", "PICTURE")},
    "name": "NAME",
    "url": "URL",
    "results": "RESULTS",
    "JAXL_API_KEYS": "JAXL_API_KEYS",
    "JAXL_CACHE_DIR": "JAXL_CACHE_DIR",
}


def flag(argument: str, value: str | None = None) -> str:
    """Return an argument as users write it on the command line."""
    name = FLAGS.get(argument, f"--{argument.replace('_', '-').replace('.', '-')}")
    return name if value in (None, "True", "False") else f"{name} {value.strip(QUOTES)}"
