"""Every option is said wherever people look for it: its docstring, its flag, its field and its name in files."""

import inspect
import re
from collections.abc import Mapping

import pytest

import jaxl
from jaxl.call import options
from jaxl.call.infotext import LABELS
from jaxl.call.options import DEFAULTS, WITH_FACTS, DrawOptions, LoadOptions, Options
from jaxl.cli.generate import generate as command
from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import SHAPING
from jaxl.server.openai.images import Edit, ImageRequest

LOADING = tuple(LoadOptions.__dataclass_fields__)
DRAWING = tuple(DrawOptions.__annotations__)

# the reasons why an option is not said somewhere
RARE = "a matter for programs: whoever needs it writes Python"
ONE_BY_ONE = "one value for one image, or one for each step"
PROMPT_PARTS = "the API has one prompt"
NOT_OFFERED = "a server compiles its programs before it is asked"
OWN_JSON = "A1111 has none; jaxl's own JSON in the file has it if there is a flag"
ANOTHER = "said by another flag or field"

# what a style sets
WAYS = ("timestep_rounding", "start_scale", "discard_penultimate")
WAYS += ("emphasis", "empty_negative", "strength_steps", "prompt_steps", "byte_rounding", "negative_clip_skip")

NO_FLAG: Mapping[str, str] = {
    "mesh": "the devices of the machine",
    "cache_dir": "HF_HOME and HF_HUB_CACHE in the environment",
    "token": "HF_TOKEN in the environment: a flag would show it to all users of the machine",
    "vae_dtype": RARE,
    "batch_sizes": "one call draws one batch",
    "calibration": RARE,
    "width": ANOTHER,
    "height": ANOTHER,
    "preview": "--preview-vae, as --preview is a file",
    "latents": RARE,
    "denoising_start": RARE,
    "denoising_end": "--refiner-at, where another model goes on",
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_noise", "final_sigmas_type", "solver_type", "shift"), RARE),
    **dict.fromkeys(("pag_adaptive_scale", "pag_layers"), RARE),
    **dict.fromkeys(WAYS, RARE),
    **dict.fromkeys(options.MicroConditioning.__annotations__, RARE),
}
NO_FIELD: Mapping[str, str] = {
    "steps": "num_inference_steps, as Hugging Face calls it",
    "num_images": "n, as OpenAI calls it",
    "width": "size, as OpenAI calls it",
    "height": "size, as OpenAI calls it",
    "latents": ONE_BY_ONE,
    **dict.fromkeys(("prompt_2", "negative_prompt_2"), PROMPT_PARTS),
    **dict.fromkeys(
        ("timesteps", "sigmas", "timestep_spacing", "final_sigmas_type", "solver_type", "shift"), ONE_BY_ONE
    ),
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_noise"), RARE),
    **dict.fromkeys(("pag_adaptive_scale", "pag_layers"), NOT_OFFERED),
    **dict.fromkeys(WAYS, RARE),
    **dict.fromkeys(("denoising_start", "denoising_end"), "refiner_at, which says where another model goes on"),
    **dict.fromkeys(options.MicroConditioning.__annotations__, RARE),
}
# settings that A1111's text has under a name of its own and in a form of its own, or not at all
NO_LABEL: Mapping[str, str] = {
    "negative_prompt": "a line of its own",
    "scheduler": "Sampler and Schedule type",
    "width": "Size",
    "height": "Size",
    "clip_skip": "Clip skip, counted from another layer",
    "loras": "tags at the prompt's end",
    "num_images": "each picture has a file",
    "seamless": "Tiling, for both axes",
    **dict.fromkeys(("tile_size", "tile_overlap"), "Tiled Diffusion, in latents"),
    "noise": "RNG, by A1111's names",
    "seed_resize_from": "Seed resize from, a text",
    "hires": "Hires upscale and its kin",
    **dict.fromkeys(("style", *WAYS, "step_noise", "sde_noise", "noise_batch"), OWN_JSON),
    "latents": "too large",
    **dict.fromkeys(("prompt_2", "negative_prompt_2", "prompt_syntax"), OWN_JSON),
    **dict.fromkeys(("timesteps", "sigmas", "timestep_spacing", "final_sigmas_type", "solver_type", "shift"), OWN_JSON),
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_noise"), OWN_JSON),
    **dict.fromkeys(("guidance_interval", "pag_scale", "pag_adaptive_scale", "pag_layers", "freeu"), OWN_JSON),
    **dict.fromkeys(("seg_scale", "seg_blur", "perp_neg_scale"), OWN_JSON),
    **dict.fromkeys((*SHAPING, "cfg_zero_steps"), OWN_JSON),
    **dict.fromkeys(("cache_interval", "step_interval", "speed"), OWN_JSON),
    **dict.fromkeys(("image", "mask", "padding_mask_crop", "denoising_start", "denoising_end", *WITH_FACTS), OWN_JSON),
    **dict.fromkeys(options.MicroConditioning.__annotations__, OWN_JSON),
}


def documented(text: str | None) -> set[str]:
    """The names that a docstring explains: before a colon, or in backquotes."""
    heads = re.findall(r"^\s*((?:\w+, )*\w+):", text or "", re.M)
    return {name for head in heads for name in head.split(", ")} | set(re.findall(r"`(\w+)`", text or ""))


def test_each_is_in_the_signature_and_the_docstring() -> None:
    loading = inspect.signature(jaxl.from_pretrained).parameters
    assert [name for name in loading if name not in ("model", "compile_for", "progress")] == list(LOADING)
    assert {name: loading[name].default for name in LOADING} == {name: getattr(LoadOptions, name) for name in LOADING}
    assert set(LOADING) - documented(jaxl.from_pretrained.__doc__) == set()

    drawing = inspect.signature(jaxl.Pipeline.generate).parameters
    named = {name: each.default for name, each in drawing.items() if name in DRAWING}
    assert named == {name: DEFAULTS.get(name) for name in named}
    assert set(DRAWING) - set(Options.__annotations__) == set(named)
    groups = (options.MicroConditioning, options.Guidance, options.Caching, options.Start, options.Sampling, Randomness)
    groups += (options.Noise, options.Conventions, options.Adapters, options.Controls, options.ImagePrompts)
    groups += (options.Regions, options.Edges, options.TiledDiffusion, options.SecondPass)
    explained = documented(jaxl.Pipeline.generate.__doc__) | documented(Options.__doc__)
    explained |= {name for group in groups for name in documented(group.__doc__)}
    # the size ids are explained for the positive branch
    assert {name for name in DRAWING if not {name, name.removeprefix("negative_")} & explained} == set()


@pytest.mark.parametrize("name", [*LOADING, *DRAWING])
def test_each_has_a_flag_or_a_reason(name: str) -> None:
    assert (name in inspect.signature(command).parameters and name not in ("preview",)) != (name in NO_FLAG)


@pytest.mark.parametrize("name", DRAWING)
def test_each_has_a_field_or_a_reason(name: str) -> None:
    assert (name in {**ImageRequest.model_fields, **Edit.model_fields}) != (name in NO_FIELD)


@pytest.mark.parametrize("name", DRAWING)
def test_each_has_a_name_in_files_or_a_reason(name: str) -> None:
    assert (name in LABELS) != (name in NO_LABEL)
