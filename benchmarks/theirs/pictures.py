"""How far jaxl's pictures are from those of other programs, setting by setting: decibels (PSNR) of `tiny` in float32.

python benchmarks/theirs/pictures.py [NAME ...]

A program is written here in PyTorch, with the networks of diffusers: see `webui` and `comfyui`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from perp_neg import PerpNegGuider
from PIL import Image
from programs import Asked, Program
from webui import Forge, WebUI

import jaxl
from jaxl.metadata.comfyui_names import SAME

MODEL = Path(jaxl.__file__).parent / "models" / "tiny"

WORDS = "a red rocket on a purple background, flat style, seen from the left, with a white window and two fins, "
LONG = WORDS * 4 + "noto style"


def _picture() -> Image.Image:
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (128, 1)), np.tile(ramp[:, None], (1, 128)), np.full((128, 128), 90, np.uint8)], 2)
    pixels[40:90, 50:80] = (220, 40, 40)
    return Image.fromarray(pixels)


PICTURE = _picture()
MASK = Image.new("L", PICTURE.size)
MASK.paste(255, (32, 24, 96, 104))
LARGER: Mapping[str, Any] = {
    "second": ((192, 192), 0.6),
    "options": {"hires": jaxl.Hires(size=(192, 192), strength=0.6)},
}


@dataclass(frozen=True)
class Setting:
    """What is asked of a program, and of jaxl beyond what both are asked for."""

    name: str
    asked: Asked
    options: Mapping[str, Any]


def _setting(
    name: str, sampler: str, schedule: str = "uniform", options: Mapping[str, Any] | None = None, **asked: Any
) -> Setting:
    return Setting(name, Asked(sampler=sampler, schedule=schedule, **asked), options or {})


WEBUI = (
    _setting("Euler", "Euler"),
    _setting("Euler a", "Euler a"),
    _setting("LMS", "LMS"),
    _setting("Heun", "Heun"),
    _setting("DPM2, Karras", "DPM2", "karras"),
    _setting("DPM2 a, Karras", "DPM2 a", "karras"),
    _setting("DPM++ 2S a, Karras", "DPM++ 2S a", "karras"),
    _setting("DPM++ 2M, Karras", "DPM++ 2M", "karras"),
    _setting("DPM++ SDE, Karras", "DPM++ SDE", "karras"),
    _setting("DPM++ 2M SDE, Exponential", "DPM++ 2M SDE", "exponential"),
    _setting("DPM++ 2M SDE Heun, Exponential", "DPM++ 2M SDE Heun", "exponential"),
    _setting("DPM++ 3M SDE, Exponential", "DPM++ 3M SDE", "exponential"),
    _setting("DPM fast", "DPM fast", steps=9),
    _setting("LCM", "LCM", steps=4, scale=2.0),
    _setting("Restart, 20 steps", "Restart", "karras", steps=20),
    _setting("DDIM", "DDIM", eta=0.0),
    _setting("DDIM, 30 steps, eta 0.5", "DDIM", steps=30, eta=0.5, options={"eta": 0.5}),
    _setting("DDIM, a prompt that changes", "DDIM", prompt="a [red:blue:0.5] rocket", steps=10, eta=0.0),
    _setting("DDIM CFG++", "DDIM CFG++", scale=9.0, eta=0.0),
    _setting("DDIM, image to image, 0.6", "DDIM", picture=PICTURE, strength=0.6, steps=12, eta=0.0),
    _setting("PLMS", "PLMS", steps=12),
    _setting("PLMS, image to image, 0.6", "PLMS", picture=PICTURE, strength=0.6, steps=12),
    _setting("UniPC", "UniPC"),
    _setting("UniPC, 15 steps", "UniPC", steps=15),
    _setting("UniPC, image to image, 0.6", "UniPC", picture=PICTURE, strength=0.6, steps=15),
    _setting("Euler, Beta", "Euler", "beta"),
    _setting("DPM++ 2M, SGM Uniform", "DPM++ 2M", "sgm_uniform"),
    _setting("Euler, KL Optimal", "Euler", "kl_optimal"),
    _setting("weights", "Euler", prompt="a ((red)) rocket, on a (purple:1.5) [background]"),
    _setting("a prompt of two chunks", "Euler", prompt=LONG),
    _setting(
        "BREAK, and a negative prompt",
        "Euler",
        prompt="a red rocket BREAK (flat:1.2) style",
        negative="blurry, (dark:1.3)",
    ),
    _setting("a prompt that changes", "Euler", prompt="a [red:blue:0.5] rocket, on a [:purple:2] background"),
    _setting("the same, calls counted twice", "Heun", prompt="a [red:blue:0.5] rocket, on a [:purple:3] background"),
    _setting("image to image, 0.5", "Euler", picture=PICTURE, strength=0.5),
    _setting("image to image, 0.75, Euler a", "Euler a", picture=PICTURE, strength=0.75),
    _setting("image to image, 0.6, DPM++ 2M SDE", "DPM++ 2M SDE", "karras", picture=PICTURE, strength=0.6),
    _setting("variation 0.3", "Euler", variation=(99, 0.3), options={"variation_seed": 99, "variation_strength": 0.3}),
    _setting("resized seed", "Euler", resized_from=(192, 64), options={"seed_resize_from": (192, 64)}),
    _setting("ENSD 31337", "Euler a", ensd=31337, options={"eta_noise_seed_delta": 31337}),
    _setting("Eta 0.5", "Euler a", eta=0.5, options={"eta": 0.5}),
    _setting("RNG NV", "Euler a", source="NV", options={"noise": "nv"}),
    _setting("RNG GPU, DPM++ SDE", "DPM++ SDE", "karras", source="GPU", options={"noise": "cuda"}),
    _setting("128x192", "Euler", size=(128, 192)),
    _setting("a second pass, Euler", "Euler", **LARGER),
    _setting("a second pass, DDIM", "DDIM", eta=0.0, **LARGER),
    _setting("a second pass, PLMS", "PLMS", **LARGER),
    _setting("a second pass, UniPC", "UniPC", **LARGER),
)
FORGE = (
    _setting("Euler", "Euler"),
    _setting("DPM++ 2M, SGM Uniform", "DPM++ 2M", "sgm_uniform"),
    _setting("Euler CFG++", "Euler CFG++", scale=1.2),
    _setting("Euler a CFG++", "Euler a CFG++", scale=1.2),
    _setting("DPM++ 2M CFG++, Karras", "DPM++ 2M CFG++", "karras", scale=1.0),
)
COMFYUI = (
    _setting("euler, normal", "euler", "normal"),
    _setting("euler_ancestral, karras", "euler_ancestral", "karras"),
    _setting("dpmpp_2m, karras", "dpmpp_2m", "karras"),
    _setting("dpmpp_2m_sde, exponential", "dpmpp_2m_sde", "exponential"),
    _setting("dpmpp_3m_sde, karras", "dpmpp_3m_sde", "karras"),
    _setting("dpmpp_sde, karras", "dpmpp_sde", "karras"),
    _setting("dpm_2, normal", "dpm_2", "normal"),
    _setting("heun, simple", "heun", "simple"),
    _setting("lms, normal", "lms", "normal"),
    _setting("lcm, sgm_uniform", "lcm", "sgm_uniform", steps=4, scale=2.0),
    _setting("ddpm, normal", "ddpm", "normal"),
    _setting("res_multistep, normal", "res_multistep", "normal"),
    _setting("gradient_estimation, normal", "gradient_estimation", "normal"),
    _setting("ipndm, karras", "ipndm", "karras"),
    _setting("er_sde, normal", "er_sde", "normal"),
    _setting("seeds_2, karras", "seeds_2", "karras"),
    _setting("ddim, karras", "ddim", "karras"),
    _setting("euler_cfg_pp, normal", "euler_cfg_pp", "normal", scale=1.0),
    _setting("euler_ancestral_cfg_pp, karras", "euler_ancestral_cfg_pp", "karras", scale=1.5),
    _setting("dpmpp_2s_ancestral_cfg_pp, karras", "dpmpp_2s_ancestral_cfg_pp", "karras", scale=1.2),
    _setting("dpmpp_2m_cfg_pp, karras", "dpmpp_2m_cfg_pp", "karras", scale=1.2),
    _setting("res_multistep_cfg_pp, normal", "res_multistep_cfg_pp", "normal", scale=1.2),
    _setting("res_multistep_ancestral_cfg_pp, normal", "res_multistep_ancestral_cfg_pp", "normal", scale=1.2),
    _setting("gradient_estimation_cfg_pp, normal", "gradient_estimation_cfg_pp", "normal", scale=1.2),
    _setting("deis, normal", "deis", "normal"),
    _setting("deis, karras", "deis", "karras", steps=15),
    _setting("uni_pc, normal", "uni_pc", "normal"),
    _setting("uni_pc_bh2, karras", "uni_pc_bh2", "karras"),
    _setting("uni_pc, image to image, 0.6", "uni_pc", "simple", picture=PICTURE, strength=0.6),
    _setting("euler, beta", "euler", "beta"),
    _setting("euler, kl_optimal", "euler", "kl_optimal"),
    _setting("euler, ddim_uniform", "euler", "ddim_uniform"),
    _setting(
        "weights and a negative prompt",
        "euler",
        "normal",
        prompt="a (red:1.5) rocket, on a ((purple)) [background]",
        negative="(dark:1.3)",
    ),
    _setting("a weight within another", "euler", "normal", prompt="a (red (rocket:1.4):1.2), on a purple background"),
    _setting("a prompt of two chunks", "euler", "normal", prompt=LONG),
    _setting(
        "a perpendicular negative prompt",
        "euler",
        "normal",
        negative="a rocket, blurry",
        neg_scale=0.8,
        options={"perp_neg_scale": 0.8},
    ),
    _setting("clip skip", "euler", "normal", clip_skip=1, options={"clip_skip": 1}),
    _setting("image to image, 0.5", "euler", "normal", picture=PICTURE, strength=0.5),
    _setting("image to image, 1.0", "euler", "karras", picture=PICTURE),
    _setting("a mask", "euler", "normal", picture=PICTURE, mask=MASK, options={"mask": MASK}),
    _setting("a mask, 0.6", "dpmpp_2m", "karras", picture=PICTURE, strength=0.6, mask=MASK, options={"mask": MASK}),
    _setting("image to image, 0.7, dpmpp_2m_sde", "dpmpp_2m_sde", "karras", picture=PICTURE, strength=0.7),
    _setting(
        "the second of a batch of three", "euler_ancestral", "normal", place=1, of=3, options={"noise_batch": (1, 3)}
    ),
)
STYLES: Mapping[str, tuple[type[Program], tuple[Setting, ...]]] = {
    "a1111": (WebUI, WEBUI),
    "forge": (Forge, FORGE),
    "comfyui": (PerpNegGuider, COMFYUI),
}


def pictures(style: str, program: Program, setting: Setting, pipe: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the program's picture, and jaxl's."""
    asked = setting.asked
    own: dict[str, Any] = {} if style == "comfyui" else {"noise": "torch"}
    own |= {"seed": asked.seed, "steps": asked.steps, "guidance_scale": asked.scale}
    own |= {"width": asked.size[0], "height": asked.size[1], "negative_prompt": asked.negative}
    own["scheduler"] = f"{SAME.get(asked.sampler, asked.sampler)} {asked.schedule}"
    if asked.picture is not None:
        own |= {"image": asked.picture, "strength": asked.strength}
    (image,) = pipe.generate(params, asked.prompt, style=style, **{**own, **setting.options}).images
    return program.draw(asked), np.asarray(image)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak ratio of signal to noise of bytes; infinite where all are equal."""
    error = np.square(one.astype(np.float64) - other).mean()
    return 10 * np.log10(255**2 / error) if error else np.inf


def main() -> None:
    import jax
    import jax.numpy as jnp
    import torch
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="of settings, all by default")
    parser.add_argument("--keep", type=Path, help="a folder for both pictures of each setting")
    arguments = parser.parse_args()
    pipe, params = jaxl.from_pretrained("tiny", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    networks = StableDiffusionXLPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    for style, (program, settings) in STYLES.items():
        found = []
        print(f"| `{style}` | dB |\n| --- | --- |", flush=True)
        for setting in settings:
            if arguments.names and setting.name not in arguments.names:
                continue
            theirs, ours = pictures(style, program(networks), setting, pipe, params)
            found.append(decibels(theirs, ours))
            print(f"| {setting.name} | {found[-1]:.1f} |", flush=True)
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                both = Image.fromarray(np.concatenate([theirs, ours], 1))
                both.save(arguments.keep / f"{style}_{setting.name.replace(' ', '_').replace(',', '')}.png")
        if found:
            print(f"\nleast {min(found):.1f}, median {statistics.median(found):.1f}\n", flush=True)


if __name__ == "__main__":
    main()
