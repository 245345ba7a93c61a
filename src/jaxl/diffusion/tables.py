"""The schedulers by name, and `build_table`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict, Unpack

import numpy as np

from jaxl.diffusion.names import find_name
from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import COLUMNS, MAX_ROWS, Table
from jaxl.diffusion.schedule import SIGMA_SCHEDULES, SchedulerConfig
from jaxl.diffusion.solvers.consistency import consistency_levels, lcm, tcd
from jaxl.diffusion.solvers.ddim import ddim
from jaxl.diffusion.solvers.ddpm import ddpm
from jaxl.diffusion.solvers.deis import deis, deis_levels
from jaxl.diffusion.solvers.dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from jaxl.diffusion.solvers.dpm2 import dpm2, dpm2_ancestral, dpmpp_2s_ancestral
from jaxl.diffusion.solvers.dpm_sde import dpmpp_sde
from jaxl.diffusion.solvers.euler import euler, euler_ancestral
from jaxl.diffusion.solvers.heun import heun
from jaxl.diffusion.solvers.lms import lms
from jaxl.diffusion.solvers.pndm import plms, pndm
from jaxl.diffusion.solvers.unipc import unipc
from jaxl.diffusion.spacing import (
    TIMESTEP_SCHEDULES,
    Levels,
    ddim_levels,
    dpm_levels,
    edm_levels,
    euler_levels,
    kdpm2_levels,
    multistep_levels,
    sigma_levels,
    timestep_levels,
)
from jaxl.errors import CheckpointError, InputError

__all__ = ["COLUMNS", "MAX_ROWS", "SCHEDULERS", "SOLVERS", "Scheduler", "Table", "build_table"]


@dataclass(frozen=True)
class Scheduler:
    """What makes a table: `solve(config, levels(config, steps), randomness)`.

    `eta` is the default of a solver that adds noise of its own, None for one that adds none. `churns` says that it
    knows churn, `finals` that it can end at another level than 0, and `custom` which levels of one's own it takes:
    `timesteps`, `sigmas`. `schedules` are the sigma schedules it can follow, and `follows` says that it does so where
    the checkpoint asks. `sigma_schedule` is the one that its full name asks for.
    """

    solve: Callable[[SchedulerConfig, Levels, Randomness], Table]
    levels: Callable[[SchedulerConfig, int], Levels]
    eta: float | None = None
    churns: bool = False
    finals: bool = False
    custom: tuple[str, ...] = ("timesteps", "sigmas")
    schedules: tuple[str, ...] = SIGMA_SCHEDULES
    follows: bool = True
    sigma_schedule: str | None = None


# for solvers that count timesteps
_COUNTING: Mapping[str, Any] = {"custom": (), "schedules": ()}

SOLVERS: Mapping[str, Scheduler] = {
    "ddim": Scheduler(ddim, ddim_levels, eta=0.0, **_COUNTING),
    "ddpm": Scheduler(ddpm, ddim_levels, custom=("timesteps",), schedules=()),
    "deis": Scheduler(deis, deis_levels),
    "dpm++2m": Scheduler(dpmpp_2m, dpm_levels, finals=True),
    "dpm++2m_sde": Scheduler(dpmpp_2m_sde, dpm_levels, eta=1.0, finals=True),
    "dpm++2s_a": Scheduler(dpmpp_2s_ancestral, euler_levels, eta=1.0, follows=False),
    "dpm++3m": Scheduler(dpmpp_3m, dpm_levels, finals=True),
    "dpm++3m_sde": Scheduler(dpmpp_3m_sde, dpm_levels, eta=1.0, finals=True),
    "dpm++sde": Scheduler(dpmpp_sde, euler_levels, eta=1.0),
    "dpm2": Scheduler(dpm2, kdpm2_levels, churns=True),
    "dpm2_a": Scheduler(dpm2_ancestral, kdpm2_levels, eta=1.0),
    # the solvers of models that were trained with EDM noise, for which they are spaced as Karras et al. do
    "edm_dpm++2m": Scheduler(dpmpp_2m, edm_levels, finals=True, custom=("sigmas",), schedules=("exponential",)),
    "edm_euler": Scheduler(euler, edm_levels, churns=True, finals=True, custom=("sigmas",), schedules=("exponential",)),
    "euler": Scheduler(euler, euler_levels, churns=True, finals=True),
    # diffusers' ancestral class has no sigma schedules, so a checkpoint's wish for one does not reach it
    "euler_a": Scheduler(euler_ancestral, euler_levels, eta=1.0, follows=False),
    "heun": Scheduler(heun, euler_levels, churns=True),
    "lcm": Scheduler(lcm, consistency_levels, custom=("timesteps",), schedules=()),
    "lms": Scheduler(lms, euler_levels),
    "plms": Scheduler(plms, ddim_levels, **_COUNTING),
    "pndm": Scheduler(pndm, ddim_levels, **_COUNTING),
    "tcd": Scheduler(tcd, consistency_levels, eta=0.3, custom=("timesteps",), schedules=()),
    "unipc": Scheduler(unipc, multistep_levels, finals=True),
}

# every full name: a solver's, alone or with one of its sigma schedules
SCHEDULERS: Mapping[str, Scheduler] = {
    name if schedule is None else f"{name}_{schedule}": replace(solver, sigma_schedule=schedule)
    for name, solver in SOLVERS.items()
    for schedule in (None, *solver.schedules)
}


class Sampling(TypedDict, total=False):
    """Choices of sampling beyond the scheduler's name and the number of steps; None means that it is not chosen.

    `Randomness` explains the numbers. `timesteps` (whole, falling) or `sigmas` (falling, the result's last) replace
    the steps; `timestep_spacing` and `final_sigmas_type` replace what the checkpoint says.
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
    schedules = {name: solver.schedules for name, solver in SOLVERS.items()}
    name = config.scheduler if scheduler is None else find_name(scheduler, schedules)
    chosen, wish = SCHEDULERS[name], config.sigma_schedule
    asks = chosen.sigma_schedule is None and chosen.follows and wish in chosen.schedules and not custom
    return f"{name}_{wish}" if asks else name


def build_table(
    config: SchedulerConfig,
    steps: int | None,
    scheduler: str | None = None,
    *,
    skip: int = 0,
    **sampling: Unpack[Sampling],
) -> Table:
    """The table of `scheduler` (see `scheduler_name`) for a schedule of `steps`.

    `steps` is 1 to the number of training timesteps, or None where `timesteps` or `sigmas` are given. The first `skip`
    of them are left out, for a run that starts from a picture: the table is that of the others alone, so a multistep
    solver begins anew. Raises InputError for a wrong argument and CheckpointError where the checkpoint's config does
    not fit the scheduler.
    """
    given = {key: value for key, value in sampling.items() if value is not None}
    custom = [key for key in ("timesteps", "sigmas") if key in given]
    name = scheduler_name(config, scheduler, custom=bool(custom))
    chosen = SCHEDULERS[name]
    solver = name.removesuffix(f"_{chosen.sigma_schedule}")
    config = replace(config.for_solver(solver), sigma_schedule=chosen.sigma_schedule)
    config = _overridden(config, name, chosen, given)
    randomness = _randomness(name, chosen, given)
    if custom:
        levels = _custom_levels(config, name, chosen, steps, given)
    else:
        levels = _levels(config, chosen)(config, _checked_steps(config, steps))
    return chosen.solve(config, levels.skip(skip), randomness)


def _levels(config: SchedulerConfig, chosen: Scheduler) -> Callable[[SchedulerConfig, int], Levels]:
    if config.noise.edm is not None:
        return edm_levels
    return TIMESTEP_SCHEDULES.get(config.sigma_schedule or "", chosen.levels)


def _checked_steps(config: SchedulerConfig, steps: int | None) -> int:
    most = min(config.noise.num_train_timesteps, MAX_ROWS // 2)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= most:
        raise InputError("steps", steps, f"must be a whole number from 1 to {most}")
    return int(steps)


def _overridden(config: SchedulerConfig, name: str, chosen: Scheduler, given: Mapping[str, Any]) -> SchedulerConfig:
    """The config with the spacing and the final sigma that the call asks for."""
    spacing, final = given.get("timestep_spacing"), given.get("final_sigmas_type")
    if spacing is not None:
        if spacing not in ("leading", "linspace", "trailing"):
            raise InputError("timestep_spacing", spacing, "must be 'leading', 'linspace' or 'trailing'")
        if config.noise.edm is not None or config.sigma_schedule in TIMESTEP_SCHEDULES:
            raise InputError("timestep_spacing", spacing, f"scheduler {name!r} has its own levels here; leave it out")
        config = replace(config, timestep_spacing=spacing)
    if final not in (None, "zero", "sigma_min"):
        raise InputError("final_sigmas_type", final, "must be 'zero' or 'sigma_min'")
    if final == "sigma_min" and not chosen.finals:
        raise InputError("final_sigmas_type", final, f"scheduler {name!r} has an end of its own; leave it out")
    return replace(config, final_sigmas_type=(final or config.final_sigmas_type) if chosen.finals else "zero")


def _custom_levels(
    config: SchedulerConfig, name: str, chosen: Scheduler, steps: int | None, given: Mapping[str, Any]
) -> Levels:
    """The levels of `timesteps` or `sigmas`, checked."""
    argument = "timesteps" if "timesteps" in given else "sigmas"
    values = given[argument]
    if argument == "timesteps" and "sigmas" in given:
        raise InputError("sigmas", given["sigmas"], "timesteps are given too; give one of the two")
    if argument not in chosen.custom:
        takes = f"takes {chosen.custom[0]} alone" if chosen.custom else "has timesteps of its own"
        raise InputError(argument, values, f"scheduler {name!r} {takes}; leave it out or choose another scheduler")
    if chosen.sigma_schedule is not None:
        remedy = f"scheduler {name!r} has sigmas of its own; use {name.removesuffix(f'_{chosen.sigma_schedule}')!r}"
        raise InputError(argument, values, remedy)
    if "timestep_spacing" in given:
        raise InputError("timestep_spacing", given["timestep_spacing"], f"{argument} are given too; leave it out")
    if argument == "sigmas" and "final_sigmas_type" in given:
        raise InputError("final_sigmas_type", given["final_sigmas_type"], "the last of sigmas is the end; leave it out")
    levels = _falling(argument, values)
    count = levels.size - (argument == "sigmas")
    if steps is not None and steps != count:
        raise InputError("steps", steps, f"the {argument} make {count} steps; leave it out")
    _checked_steps(config, count)
    if argument == "timesteps":
        last = config.noise.num_train_timesteps - 1
        if (levels != levels.round()).any() or not 0 <= levels[-1] <= levels[0] <= last:
            raise InputError(argument, values, f"must be whole numbers from {last} down to 0")
        return timestep_levels(config, levels)
    highest = config.noise.sigmas()[-1] if config.noise.edm is None else config.noise.edm.sigma_max
    # published sigmas are rounded, so the first may be a little more than the highest
    if not 0 <= levels[-1] <= levels[0] <= 1.01 * highest:
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
    if chosen.eta is None and eta:
        raise InputError("eta", eta, f"scheduler {name!r} adds no noise that eta scales; leave it out")
    if not chosen.churns and numbers.get("s_churn"):
        raise InputError("s_churn", numbers["s_churn"], f"scheduler {name!r} has no churn; leave it out")
    return Randomness(**{"eta": chosen.eta or 0.0, **numbers})
