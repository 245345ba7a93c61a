"""Styles: what another program does where a caller does not say, as options that each stand by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxl.call.options import Noise
from jaxl.diffusion.names import AUTOMATIC, find_name
from jaxl.diffusion.other_noise import OWN
from jaxl.diffusion.schedulers import SCHEDULERS, SOLVERS, Scheduler
from jaxl.errors import InputError, nearest

# sigma schedules that span the levels of a spacing, which is that of the whole training elsewhere
SPANNING = ("karras", "exponential", "beta")
# options that are for noise by betas alone
OF_BETAS = ("timestep_rounding", "start_scale", "timestep_spacing")


@dataclass(frozen=True)
class Style:
    """What a program does.

    `options` are those it sets for all pictures, `sde` others for solvers of SDEs. `one_generator`: that draws a batch.
    `solvers`: its own forms of solvers that go by these names.
    `schedules`: a sampler's name alone means one of these, or uniform; None leaves it to the checkpoint. `forms`: its
    own forms of sigma schedules that go by these names. `discards`: the samplers whose last level but one is left out.
    `schedulers`: options of single schedulers, or of all with a solver. `skips_both`: `clip_skip` is that of both
    prompts. `unmasked`: what it does otherwise with a mask, by solvers that jaxl has no form of then.
    """

    options: Mapping[str, Any]
    sde: Mapping[str, Any] = field(default_factory=dict)
    one_generator: bool = False
    solvers: Mapping[str, str] = field(default_factory=dict)
    schedules: Mapping[str, str] | None = None
    forms: Mapping[str, str] = field(default_factory=dict)
    discards: tuple[str, ...] = ()
    schedulers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skips_both: bool = False
    unmasked: Mapping[str, str] = field(default_factory=dict)


_COMFYUI = Style(
    # a graphics card draws for the steps, but not for Brownian paths, unless their sampler is called `_gpu`
    {
        "noise": "torch",
        "step_noise": "cuda",
        "eta_noise_seed_delta": 0,
        "timestep_rounding": "nearest",
        "start_scale": "variance",
        "byte_rounding": "truncate",
        "strength_steps": "whole",
        "empty_negative": "encoded",
        "emphasis": "comfyui",
    },
    sde={"step_noise": "torch", "sde_noise": "brownian_run"},
    one_generator=True,
    skips_both=True,
    solvers={
        "ddim": "euler",
        "ddpm": "euler_a",
        "deis": "deis_comfyui",
        "lms": "lms_comfyui",
        "unipc": "unipc_comfyui",
        "unipc_bh2": "unipc_bh2_comfyui",
    },
    schedules={},
    forms={"beta": "beta_comfyui", "kl_optimal": "kl_optimal_comfyui", "ays": "ays_comfyui"},
    discards=("dpm2", "dpm2_a", "unipc_comfyui", "unipc_bh2_comfyui"),
    schedulers={"lcm": {"scheduler": "lcm_sigmas_uniform"}},
    unmasked={"ddim": "ComfyUI gives what a mask keeps another seed's noise with it; use 'euler', its method without"},
)
_DISTILLED = {"scheduler": "lcm_sigmas", "timestep_rounding": "distilled"}
_A1111 = Style(
    {
        "noise": "cuda",
        "timestep_rounding": "none",
        "start_scale": "sigma",
        "byte_rounding": "truncate",
        "strength_steps": "part+1",
        "empty_negative": "zeros",
        "emphasis": "original",
        "prompt_syntax": "lenient",
        "prompt_steps": "calls",
    },
    solvers={
        "ddim": "ddim_a1111",
        "ddim_cfg++": "ddim_cfg++_a1111",
        "plms": "plms_a1111",
        "unipc": "unipc_a1111",
    },
    schedules=AUTOMATIC,
    forms={"ays": "ays_a1111"},
    discards=("dpm2", "dpm2_a", "dpm++3m_sde"),
    schedulers={
        "lcm": _DISTILLED,
        "lcm_sigmas_uniform": _DISTILLED,
        "dpm_fast": {"eta": 1.0},
        **{name: {"strength_steps": "part-1"} for name in ("ddim", "ddim_cfg++", "plms")},
        "unipc": {"strength_steps": "part+0"},
    },
)
STYLES: Mapping[str, Style] = {
    "a1111": _A1111,
    "forge": replace(_A1111, options={**_A1111.options, "timestep_rounding": "nearest"}, skips_both=True),
    "comfyui": replace(_COMFYUI, options={**_COMFYUI.options, "prompt_syntax": "comfyui"}),
    "diffusers": Style({"noise": "torch", "sde_noise": "draws", "prompt_syntax": "plain"}, one_generator=True),
    "invokeai": Style(
        {
            "noise": "torch",
            "step_noise": "cuda",
            "eta_noise_seed_delta": "inverted",
            "sde_noise": "draws",
            "empty_negative": "zeros",
        },
        skips_both=True,
    ),
    "swarmui": replace(_COMFYUI, one_generator=False),
}


def style_of(options: Mapping[str, Any]) -> Style | None:
    """Return the style that is asked for. Raises InputError for a name that there is not."""
    name = options.get("style")
    if name is None:
        return None
    if name not in STYLES:
        raise InputError("style", name, nearest(str(name), STYLES))
    return STYLES[name]


def syntax_of(options: Mapping[str, Any]) -> Any:
    """Return the syntax of prompts in the style that is asked for, if it has one."""
    style = style_of(options)
    return None if style is None else style.options.get("prompt_syntax")


def batch_of(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the first image's place, and the number of images, of a batch that one generator draws; None without."""
    given, style = options.get("noise_batch"), style_of(options)
    if given is not None or style is None or not style.one_generator or not isinstance(options.get("seed", 0), int):
        return given
    return 0, options.get("num_images") or 1


def styled(options: Mapping[str, Any], scheduler: str, images: int, kind: str = "betas") -> dict[str, Any]:
    """Return the options with those of their style, where they say nothing else.

    scheduler: the model's, for where they name none. images: those of the call. kind: that of the model's noise.
    """
    style = style_of(options)
    if style is None:
        return dict(options)
    name = find_name(options.get("scheduler", scheduler))
    asked = SCHEDULERS[name].solver
    of_scheduler = style.schedulers.get(name) or style.schedulers.get(asked.form_of or asked.name, {})
    chosen = SCHEDULERS[of_scheduler.get("scheduler", name)]
    if "mask" in options and (reason := style.unmasked.get(chosen.solver.name)):
        raise InputError("scheduler", options.get("scheduler", scheduler), reason)
    form = style.solvers.get(chosen.solver.name)
    if form is not None:
        chosen = replace(chosen, solver=SOLVERS[form])
    own: dict[str, Any] = {**style.options, **(style.sde if chosen.solver.brownian else {})}
    if (batch := batch_of({**options, "num_images": images})) is not None:
        own["noise_batch"] = batch
    if style.skips_both and "clip_skip" in options:
        own["negative_clip_skip"] = options["clip_skip"]
    if "latents" in options:
        own["step_noise"] = own.get("step_noise", own.pop("noise"))
        own.pop("noise_batch", None)
    if options.get("noise") == OWN:
        own = {name: value for name, value in own.items() if name not in Noise.__annotations__}
    custom = "timesteps" in options or "sigmas" in options
    if form is not None:
        own["scheduler"] = form
    if chosen.solver.edm or not chosen.solver.custom:  # what has times of its own, or counts whole ones
        own.pop("timestep_rounding", None)
        if not chosen.solver.custom:  # whose latents have unit variance
            own.pop("start_scale", None)
    elif style.schedules is not None and not custom:
        own |= _levels(style, chosen)
    own |= of_scheduler
    if custom:
        own.pop("strength_steps", None)
    if kind != "betas":  # whose levels and first noise are as the model has them
        own = {name: value for name, value in own.items() if name not in OF_BETAS}
    return {**own, **options, **({"scheduler": own["scheduler"]} if "scheduler" in own else {})}


def _levels(style: Style, chosen: Scheduler) -> dict[str, Any]:
    """Return the options of the levels that a style's program visits with a scheduler."""
    solver = chosen.solver
    found: dict[str, Any] = {"discard_penultimate": True} if solver.name in style.discards else {}
    schedule = chosen.sigma_schedule or (style.schedules or {}).get(solver.name, "uniform")
    schedule = style.forms.get(schedule, schedule)
    if schedule in solver.schedules:
        found["scheduler"] = f"{solver.name}_{schedule}"
    if schedule in SPANNING:
        found["timestep_spacing"] = "linspace"
    return found
