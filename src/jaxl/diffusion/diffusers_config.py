"""Reading a checkpoint's `scheduler_config.json`, as the classes of diffusers write it."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from jaxl.config import Json, read_fields
from jaxl.diffusion.schedule import EDM, Flow, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.schedulers import SOLVERS, USUAL_SOLVERS
from jaxl.diffusion.solvers.solver import DiffusersClass
from jaxl.errors import CheckpointError

CLASSES: Mapping[str, DiffusersClass] = {
    kind.name: kind for kind in (solver.diffusers for solver in SOLVERS.values()) if kind is not None
} | {
    # on straight paths solvers are the same
    "FlowMatchEulerDiscreteScheduler": DiffusersClass("FlowMatchEulerDiscreteScheduler", lambda _: "euler", flow=True),
    "FlowMatchHeunDiscreteScheduler": DiffusersClass("FlowMatchHeunDiscreteScheduler", lambda _: "heun", flow=True),
}

# fields that classes share, so that those in a file of one class also hold for others
_SHARED = ("timestep_spacing", "steps_offset", "final_sigmas_type", "set_alpha_to_one", "clip_sample")
_SIGMA_FLAGS: Mapping[str, str] = {f"use_{name}_sigmas": name for name in ("karras", "exponential", "beta")}
_OPTIONS = {option for each in CLASSES.values() for option in (*each.options, *each.fixed)} - {"prediction_type"}

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "lambda_min_clipped": (-math.inf,),
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
    "stochastic_sampling": (False,),
}

# options of sampling that jaxl lacks, so that the checkpoint's own scheduler cannot be run
_LACKING = ("use_lu_lambdas",)
# what makes another noise of the betas, and is refused
_OTHER_NOISE = ("use_flow_sigmas",)

# settings of algorithms that jaxl lacks, or of options that are refused when they are on
_INERT = (
    *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"),
    *("skip_prk_steps", "noise_sampler_seed"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
)


def read_scheduler_config(raw: Json, what: str = "scheduler/scheduler_config.json") -> SchedulerConfig:
    """Read a diffusers scheduler config.

    Of a class that jaxl lacks, and of one with an option that it lacks, the noise is read alone, for another
    scheduler. Raises CheckpointError for a class with another kind of noise schedule, and for a field that would
    change the result and is not known.
    """
    name = raw.get("_class_name")
    lacking = [option for option in _LACKING if raw.get(option)]
    betas = "beta_start" in raw or "trained_betas" in raw
    if not isinstance(name, str) or (name not in CLASSES and not betas):
        supported = ", ".join(USUAL_SOLVERS)
        raise CheckpointError(f"{what}: scheduler class {name!r} is not supported, only {supported}")
    kind = CLASSES.get(name, DiffusersClass(name))
    if name not in CLASSES or lacking:
        known = {*_SHARED, *_FIXED, *_SIGMA_FLAGS, *(f.name for f in fields(NoiseSchedule)), *_OTHER_NOISE}
        raw = {key: value for key, value in raw.items() if key in known}
        kind = DiffusersClass(" with ".join((name, *lacking)), defaults=kind.defaults)
    stated = {**kind.defaults, **{key: value for key, value in raw.items() if value is not None}}
    choices = {f.name: f.default for f in fields(SchedulerConfig) if f.name in (*_SHARED, *kind.options)}
    noise = asdict(NoiseSchedule()) | (asdict(EDM()) if kind.edm else {}) | (asdict(Flow()) if kind.flow else {})
    used = choices | noise | dict.fromkeys(_SIGMA_FLAGS, False)
    found = read_fields(
        stated,
        what=what,
        used=used,
        fixed={**_FIXED, **kind.fixed},
        inert={*_INERT, *_OPTIONS} - {*used, *kind.fixed},
    )
    if "disable_corrector" in found:
        found["disable_corrector"] = tuple(found["disable_corrector"])
    schedules = [schedule for flag, schedule in _SIGMA_FLAGS.items() if found[flag]]
    if len(schedules) > 1:
        raise CheckpointError(f"{what}: the sigmas cannot be {' and '.join(schedules)} at once; keep one of them")
    if kind.edm and stated.get("sigma_schedule") == "exponential":
        schedules = ["exponential"]
    try:
        config = SchedulerConfig(
            noise=_noise_schedule(found, kind),
            scheduler=kind.choose(stated) if kind.choose else USUAL_SOLVERS.get(kind.name, kind.name),
            sigma_schedule=schedules[0] if schedules else None,
            **{key: found[key] for key in choices},
        )
        operator.index(config.steps_offset)
    except (TypeError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{what}: {error}") from None
    return config


def config_for_solver(config: SchedulerConfig, solver: str) -> SchedulerConfig:
    """Return the config as a solver sees it: without the options that were stated for another kind of solver.

    A solver that has options of its own has those, unless the checkpoint's scheduler is the solver.
    """
    if config.scheduler == solver:
        return config
    own, other = (SOLVERS[name].diffusers if name in SOLVERS else None for name in (config.scheduler, solver))
    if not (own and other and own.options == other.options):
        config = replace(config, **{f.name: f.default for f in fields(config) if f.name in _OPTIONS})
    return replace(config, **SOLVERS[solver].options)


def _noise_schedule(found: Json, kind: DiffusersClass) -> NoiseSchedule:
    """The noise schedule of these fields. Raises CheckpointError, TypeError or ValueError where they make none."""
    betas = found["trained_betas"]
    noise = NoiseSchedule(
        num_train_timesteps=operator.index(found["num_train_timesteps"]),
        beta_start=float(found["beta_start"]),
        beta_end=float(found["beta_end"]),
        beta_schedule=found["beta_schedule"],
        trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
        prediction_type="flow" if kind.flow else found["prediction_type"],
        rescale_betas_zero_snr=bool(found["rescale_betas_zero_snr"]),
        edm=EDM(**{f.name: float(found[f.name]) for f in fields(EDM)}) if kind.edm else None,
        flow=Flow(float(found["shift"])) if kind.flow else None,
    )
    if noise.flow is not None:
        if not 0 < noise.flow.shift < math.inf:
            raise CheckpointError(f"shift={noise.flow.shift} must be a number above 0")
    elif noise.edm is None:
        noise.alphas_cumprod()
    elif not 0 < noise.edm.sigma_min < noise.edm.sigma_max < math.inf or min(noise.edm.sigma_data, noise.edm.rho) <= 0:
        raise CheckpointError(f"{noise.edm} is no range of noise")
    return noise
