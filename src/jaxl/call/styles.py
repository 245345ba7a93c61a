"""Styles: what another program does where a caller does not say, as options that each stand by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxl.call.options import Noise
from jaxl.diffusion.names import AUTOMATIC, find_name
from jaxl.diffusion.other_noise import OWN
from jaxl.diffusion.schedulers import SCHEDULERS, Scheduler
from jaxl.errors import InputError, nearest

# sigma schedules that span the levels of a spacing, which is that of the whole training elsewhere
SPANNING = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class Style:
    """What a program does.

    `options` are those it sets for all pictures, `sde` others for solvers of SDEs. `one_generator`: that draws a batch.
    `schedules`: a sampler's name alone means one of these, or uniform; None leaves it to the checkpoint. `discards`:
    the samplers whose last level but one is left out.
    """

    options: Mapping[str, Any]
    sde: Mapping[str, Any] = field(default_factory=dict)
    one_generator: bool = False
    schedules: Mapping[str, str] | None = None
    discards: tuple[str, ...] = ()


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
    sde={"step_noise": "torch"},
    one_generator=True,
    schedules={},
    discards=("dpm2", "dpm2_a", "unipc"),
)
STYLES: Mapping[str, Style] = {
    "a1111": Style(
        {
            "noise": "cuda",
            "timestep_rounding": "none",
            "start_scale": "sigma",
            "byte_rounding": "truncate",
            "strength_steps": "part+1",
            "empty_negative": "zeros",
            "emphasis": "original",
            "prompt_syntax": "lenient",
        },
        schedules=AUTOMATIC,
        discards=("dpm2", "dpm2_a", "dpm++3m_sde"),
    ),
    "comfyui": _COMFYUI,
    "diffusers": Style({"noise": "torch", "sde_noise": "draws", "prompt_syntax": "plain"}, one_generator=True),
    "invokeai": Style(
        {
            "noise": "torch",
            "step_noise": "cuda",
            "eta_noise_seed_delta": "inverted",
            "sde_noise": "draws",
            "empty_negative": "zeros",
        }
    ),
    "swarmui": Style(_COMFYUI.options, sde=_COMFYUI.sde, schedules={}, discards=_COMFYUI.discards),
}


def style_of(options: Mapping[str, Any]) -> Style | None:
    """Return the style that is asked for. Raises InputError for a name that there is not."""
    name = options.get("style")
    if name is None:
        return None
    if name not in STYLES:
        raise InputError("style", name, nearest(str(name), STYLES))
    return STYLES[name]


def batch_of(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the first image's place, and the number of images, of a batch that one generator draws; None without."""
    given, style = options.get("noise_batch"), style_of(options)
    if given is not None or style is None or not style.one_generator or not isinstance(options.get("seed", 0), int):
        return given
    return 0, options.get("num_images") or 1


def styled(options: Mapping[str, Any], scheduler: str, images: int) -> dict[str, Any]:
    """Return the options with those of their style, where they say nothing else.

    scheduler: the model's, for where they name none. images: those of the call.
    """
    style = style_of(options)
    if style is None:
        return dict(options)
    chosen = SCHEDULERS[find_name(options.get("scheduler", scheduler))]
    own: dict[str, Any] = {**style.options, **(style.sde if chosen.solver.brownian else {})}
    if (batch := batch_of({**options, "num_images": images})) is not None:
        own["noise_batch"] = batch
    if "latents" in options:
        own["step_noise"] = own.get("step_noise", own.pop("noise"))
        own.pop("noise_batch", None)
    if options.get("noise") == OWN:
        own = {name: value for name, value in own.items() if name not in Noise.__annotations__}
    custom = "timesteps" in options or "sigmas" in options
    if chosen.solver.edm or not chosen.solver.custom:  # what has times of its own, or counts whole ones
        own.pop("timestep_rounding", None)
    elif style.schedules is not None and not custom:
        own |= _levels(style, chosen)
    if custom:
        own.pop("strength_steps", None)
    return {**own, **options, **({"scheduler": own["scheduler"]} if "scheduler" in own else {})}


def _levels(style: Style, chosen: Scheduler) -> dict[str, Any]:
    """Return the options of the levels that a style's program visits with a scheduler."""
    solver = chosen.solver
    found: dict[str, Any] = {"discard_penultimate": True} if solver.name in style.discards else {}
    schedule = chosen.sigma_schedule or (style.schedules or {}).get(solver.name, "uniform")
    if schedule in solver.schedules:
        found["scheduler"] = f"{solver.name}_{schedule}"
    if schedule in SPANNING:
        found["timestep_spacing"] = "linspace"
    return found
