"""From a scheduler's name and a number of steps to its table: `build_table`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypedDict, Unpack

import numpy as np

from jaxl.diffusion.diffusers_config import config_for_solver
from jaxl.diffusion.names import find_name
from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rounded import nearest_places
from jaxl.diffusion.rows import MAX_ROWS, Table
from jaxl.diffusion.schedule import Flow, SchedulerConfig
from jaxl.diffusion.schedulers import SCHEDULERS, SOLVERS, Scheduler
from jaxl.diffusion.sigma_schedules import SIGMA_SCHEDULES
from jaxl.diffusion.spacing import Levels, edm_levels, flow_levels, sigma_levels, timestep_levels, told
from jaxl.errors import CheckpointError, InputError


class Sampling(TypedDict, total=False):
    """Choices of sampling beyond the scheduler's name and the number of steps; None means that it is not chosen.

    `Randomness` explains the numbers. `timesteps` (whole, falling) or `sigmas` (falling, the result's last) replace
    the steps; `timestep_spacing`, `final_sigmas_type` and `solver_type` replace what the checkpoint says. The last is
    "midpoint" or "heun" for DPM++ multistep, "bh2" or "bh1" for UniPC, "phi_1" or "phi_2" for SEEDS-2 and exponential
    Heun. `shift` moves the levels of a model that was trained on straight paths towards noise; 1 leaves them even.

    Further ones are other programs' ways. `timestep_rounding` is that of the timesteps that the network is told of the
    sigmas: "none", as in A1111, "nearest" trained one, as in ComfyUI, or "distilled", the nearest of those that LCM was
    distilled at, as in A1111 for LCM; each scheduler of diffusers has a way of its own. `start_scale` is what unit
    noise is multiplied by: "sigma", as in A1111, or "variance", that of noise and image together where the highest
    sigma is that of the training, as in ComfyUI. `discard_penultimate` leaves out the last level but one of a schedule
    that has one more.
    """

    # beside the type, its name in the settings that A1111 and its kin write into pictures
    eta: Annotated[float | None, "Eta"]
    s_churn: float | None
    s_tmin: float | None
    s_tmax: float | None
    s_noise: float | None
    timesteps: Sequence[int] | np.ndarray | None
    sigmas: Sequence[float] | np.ndarray | None
    timestep_spacing: str | None
    final_sigmas_type: str | None
    solver_type: str | None
    shift: float | None
    timestep_rounding: Literal["none", "nearest", "distilled"] | None
    start_scale: Literal["sigma", "variance"] | None
    discard_penultimate: bool | None


def scheduler_name(config: SchedulerConfig, scheduler: str | None = None, *, custom: bool = False) -> str:
    """The full name of what `build_table` runs for these arguments, with the sigma schedule that a checkpoint asks for.

    `scheduler` is a name in SCHEDULERS or one of those that diffusers, A1111 or ComfyUI have for it; None means the
    checkpoint's own. With `custom` timesteps or sigmas no sigma schedule is added. Raises InputError for an unknown
    name and CheckpointError if the checkpoint's own scheduler is not supported.
    """
    if scheduler is None and config.scheduler not in SCHEDULERS:
        raise CheckpointError(
            f"the checkpoint's own scheduler {config.scheduler!r} is not supported; choose one with `scheduler`: "
            f"{', '.join(SOLVERS)}"
        )
    name = config.scheduler if scheduler is None else find_name(scheduler)
    chosen, wish = SCHEDULERS[name], config.sigma_schedule
    follows = chosen.solver.follows and wish in chosen.solver.schedules
    asks = chosen.sigma_schedule is None and follows and not custom
    return f"{name}_{wish}" if asks else name


def build_table(
    config: SchedulerConfig,
    steps: int | None,
    scheduler: str | None = None,
    *,
    places: Sequence[int] | None = None,
    hands_over: bool = False,
    **sampling: Unpack[Sampling],
) -> Table:
    """The table of `scheduler` (see `scheduler_name`) for a schedule of `steps`.

    `steps` is 1 to the number of training timesteps, or None where `timesteps` or `sigmas` are given. Where `places`
    are given, the steps at these of the schedule are made alone: the first ones are left out for a run that starts from
    a picture, so that a multistep solver begins anew, and a step before a gap goes over all of it. Where a model
    `hands_over` to another, levels are those of the whole schedule, even if a program has others from a picture. Raises
    InputError for a wrong argument and CheckpointError where the checkpoint's config does not fit the scheduler.
    """
    for name in sampling.keys() - Sampling.__annotations__.keys():
        raise TypeError(f"build_table() got an unexpected keyword argument {name!r}")
    given = {key: value for key, value in sampling.items() if value is not None}
    custom = [key for key in ("timesteps", "sigmas") if key in given]
    name = scheduler_name(config, scheduler, custom=bool(custom))
    chosen = SCHEDULERS[name]
    config = replace(config_for_solver(config, chosen.solver.name), sigma_schedule=chosen.sigma_schedule)
    if config.noise.flow is not None and not chosen.solver.flows:
        able = ", ".join(each.name for each in SOLVERS.values() if each.flows)
        raise CheckpointError(f"scheduler {name!r} is not for a model that was trained on straight paths; use {able}")
    config = _overridden(config, name, chosen, given)
    randomness = _randomness(name, chosen, given)
    if config.noise.flow is not None and randomness.s_churn:
        raise InputError("s_churn", randomness.s_churn, "a straight path has no churn; leave it out")
    if (discards := bool(given.get("discard_penultimate"))) and (custom or not chosen.solver.custom):
        why = f"{custom[0]} are given" if custom else f"scheduler {name!r} counts timesteps from step to step"
        raise InputError("discard_penultimate", True, f"{why}; leave it out")
    if custom:
        levels = _custom_levels(config, name, chosen, steps, given)
    else:
        levels = _levels(config, chosen)(config, _checked_steps(config, steps, chosen) + discards)
        levels = levels.without_penultimate() if discards else levels
        if levels.times.size * chosen.solver.rows > MAX_ROWS:  # some schedules have more steps than are asked for
            raise InputError("steps", steps, f"scheduler {name!r} makes {levels.times.size} of them; ask for fewer")
    if places is not None:
        levels = levels.at(places) if hands_over else levels.from_picture(places)
    table = chosen.solver.solve(config, levels, randomness)
    return _as_others(table, config, given)


def _as_others(table: Table, config: SchedulerConfig, given: Mapping[str, Any]) -> Table:
    """The table with timesteps, and a scale of the first noise, as other programs have them."""
    rounding, scale = given.get("timestep_rounding"), given.get("start_scale")
    for name, value, known in (
        ("timestep_rounding", rounding, ("none", "nearest", "distilled")),
        ("start_scale", scale, ("sigma", "variance")),
    ):
        if value not in (None, *known):
            raise InputError(name, value, f"must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
    if config.noise.flow is not None and (rounding or scale):
        asked = ("timestep_rounding", rounding) if rounding else ("start_scale", scale)
        raise InputError(*asked, "a straight path has its own; leave it out")
    if rounding is None and scale is None:
        return table
    if config.noise.edm is not None:
        if rounding is not None:
            raise InputError("timestep_rounding", rounding, "this model's noise has no timesteps; leave it out")
        highest = config.noise.edm.sigma_max
    else:
        highest = config.noise.sigmas()[-1]
    with np.errstate(divide="ignore"):
        ratios = table.sigmas[:-1] / table.alphas[:-1]
    if rounding is not None:
        times = told(config.noise, ratios) if rounding == "none" else _nearest(config, ratios, rounding)
        table = replace(table.with_columns(t=times), timesteps=times.astype(np.float32))
    if scale is not None:
        both = scale == "variance" and ratios[0] >= highest * (1 - 1e-5)
        table = replace(table, init_scale=math.hypot(table.sigmas[0], table.alphas[0] if both else 0.0))
    return table


def _nearest(config: SchedulerConfig, sigmas: np.ndarray, rounding: str) -> np.ndarray:
    """The timesteps whose sigmas are nearest in the logarithm, of all or of those of a distillation."""
    trained = config.noise.sigmas()
    every = trained.size // config.original_inference_steps if rounding == "distilled" else 1
    known = np.arange(every - 1, trained.size, every)
    return known[nearest_places(sigmas, trained[known])].astype(np.float64)


def check_gaps(argument: str, value: int, name: str, table: Table) -> None:
    """Raise InputError for a scheduler whose steps do not go over others, and its table.

    It may count timesteps from step to step; or it adds noise in each, so that fewer make another picture.
    """
    if table.adds_noise or not SCHEDULERS[name].solver.custom:
        why = "adds noise in each step" if table.adds_noise else "counts timesteps from step to step"
        raise InputError(argument, value, f"scheduler {name!r} {why}; leave it out, or give cache_interval")


def _levels(config: SchedulerConfig, chosen: Scheduler) -> Callable[[SchedulerConfig, int], Levels]:
    schedule, kind = SIGMA_SCHEDULES.get(chosen.sigma_schedule or ""), config.noise.kind
    if schedule is None or schedule.levels is None:
        return {"edm": edm_levels, "flow": flow_levels}.get(kind, chosen.solver.levels)
    if kind not in schedule.kinds:
        noise = {"edm": "EDM noise", "flow": "straight paths"}[kind]
        raise CheckpointError(
            f"the sigma schedule {schedule.name!r} is made of timesteps that a model with {noise} lacks; use 'karras' "
            "or 'exponential'"
        )
    return schedule.levels


def _checked_steps(config: SchedulerConfig, steps: int | None, chosen: Scheduler) -> int:
    most = min(config.noise.num_train_timesteps, MAX_ROWS // chosen.solver.rows)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= most:
        raise InputError("steps", steps, f"must be a whole number from 1 to {most}")
    return int(steps)


def _overridden(config: SchedulerConfig, name: str, chosen: Scheduler, given: Mapping[str, Any]) -> SchedulerConfig:
    """The config with the spacing and the final sigma that the call asks for."""
    spacing, final = given.get("timestep_spacing"), given.get("final_sigmas_type")
    if spacing is not None:
        if spacing not in ("leading", "linspace", "trailing"):
            raise InputError("timestep_spacing", spacing, "must be 'leading', 'linspace' or 'trailing'")
        schedule = SIGMA_SCHEDULES.get(config.sigma_schedule or "")
        if config.noise.kind != "betas" or (schedule is not None and schedule.levels is not None):
            raise InputError("timestep_spacing", spacing, f"scheduler {name!r} has its own levels here; leave it out")
        config = replace(config, timestep_spacing=spacing)
    if final not in (None, "zero", "sigma_min"):
        raise InputError("final_sigmas_type", final, "must be 'zero' or 'sigma_min'")
    if final == "sigma_min" and not chosen.solver.finals:
        raise InputError("final_sigmas_type", final, f"scheduler {name!r} has an end of its own; leave it out")
    shift = given.get("shift")
    if shift is not None:
        if config.noise.flow is None:
            raise InputError("shift", shift, "is for models that were trained on straight paths; leave it out")
        if isinstance(shift, bool) or not isinstance(shift, (int, float)) or not 0 < shift < math.inf:
            raise InputError("shift", shift, "must be a number above 0, such as 3.0")
        config = replace(config, noise=replace(config.noise, flow=Flow(float(shift))))
    kind, kinds = given.get("solver_type"), chosen.solver.solver_types
    if kind is not None:
        if kind not in kinds:
            remedy = f"must be {' or '.join(map(repr, kinds))}" if kinds else "has one form alone; leave it out"
            raise InputError("solver_type", kind, f"scheduler {name!r}{': ' if kinds else ' '}{remedy}")
        config = replace(config, solver_type=kind)
    return replace(config, final_sigmas_type=(final or config.final_sigmas_type) if chosen.solver.finals else "zero")


def _custom_levels(
    config: SchedulerConfig, name: str, chosen: Scheduler, steps: int | None, given: Mapping[str, Any]
) -> Levels:
    """The levels of `timesteps` or `sigmas`, checked."""
    argument = "timesteps" if "timesteps" in given else "sigmas"
    values = given[argument]
    if argument == "timesteps" and "sigmas" in given:
        raise InputError("sigmas", given["sigmas"], "timesteps are given too; give one of the two")
    if argument not in chosen.solver.custom:
        takes = f"takes {chosen.solver.custom[0]} alone" if chosen.solver.custom else "has timesteps of its own"
        raise InputError(argument, values, f"scheduler {name!r} {takes}; leave it out or choose another scheduler")
    if chosen.sigma_schedule is not None:
        remedy = f"scheduler {name!r} has sigmas of its own; use {chosen.solver.name!r}"
        raise InputError(argument, values, remedy)
    if "timestep_spacing" in given:
        raise InputError("timestep_spacing", given["timestep_spacing"], f"{argument} are given too; leave it out")
    if argument == "sigmas" and "final_sigmas_type" in given:
        raise InputError("final_sigmas_type", given["final_sigmas_type"], "the last of sigmas is the end; leave it out")
    levels = _falling(argument, values)
    count = levels.size - (argument == "sigmas")
    if steps is not None and steps != count:
        raise InputError("steps", steps, f"the {argument} make {count} steps; leave it out")
    _checked_steps(config, count, chosen)
    if argument == "timesteps" and config.noise.flow is not None:
        raise InputError(argument, values, "on straight paths levels are sigmas, from 1 down; give those")
    if argument == "timesteps":
        last = config.noise.num_train_timesteps - 1
        if (levels != levels.round()).any() or not 0 <= levels[-1] <= levels[0] <= last:
            raise InputError(argument, values, f"must be whole numbers from {last} down to 0")
        return timestep_levels(config, levels)
    highest = config.noise.sigmas()[-1] if config.noise.edm is None else config.noise.edm.sigma_max
    # published sigmas are rounded, so the first may be a little more than the highest, unless that is noise alone
    if not 0 <= levels[-1] <= levels[0] <= highest * (1.01 if config.noise.flow is None else 1):
        raise InputError(argument, values, f"must be numbers from {highest:.5g} down to 0")
    return sigma_levels(config, levels)


def _falling(argument: str, values: Any) -> np.ndarray:
    """`values` as float64 [n], checked to be finite and to fall."""
    remedy = "must be a list of falling numbers" + (", the result's last" if argument == "sigmas" else "")
    try:
        levels = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(argument, values, remedy) from None
    if levels.ndim != 1 or levels.size < (2 if argument == "sigmas" else 1) or not np.isfinite(levels).all():
        raise InputError(argument, values, remedy)
    if (np.diff(levels) >= 0).any():
        raise InputError(argument, values, remedy)
    return levels


def _randomness(name: str, chosen: Scheduler, given: Mapping[str, Any]) -> Randomness:
    numbers = {key: given[key] for key in ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise") if key in given}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise InputError(key, value, "must be a number of at least 0")
        if key != "s_tmax" and not math.isfinite(value):
            raise InputError(key, value, "must be finite")
    eta = numbers.get("eta")
    if eta is not None and eta > 1:
        raise InputError("eta", eta, "must be a number from 0 to 1")
    if chosen.solver.eta is None and eta:
        raise InputError("eta", eta, f"scheduler {name!r} adds no noise that eta scales; leave it out")
    if not chosen.solver.churns and numbers.get("s_churn"):
        raise InputError("s_churn", numbers["s_churn"], f"scheduler {name!r} has no churn; leave it out")
    return Randomness(**{"eta": chosen.solver.eta or 0.0, **numbers})
