"""The solvers and the schedulers by name, collected from the solvers' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxl.diffusion.solvers import (
    consistency,
    ddim,
    ddpm,
    deis,
    dpm,
    dpm2,
    dpm_fast,
    dpm_sde,
    dpm_singlestep,
    er_sde,
    euler,
    gradient_estimation,
    heun,
    ipndm,
    lms,
    pndm,
    res_multistep,
    restart,
    sa_solver,
    seeds,
    unipc,
)
from jaxl.diffusion.solvers.solver import Solver

_FILES = (
    consistency,
    ddim,
    ddpm,
    deis,
    dpm,
    dpm2,
    dpm_fast,
    dpm_sde,
    dpm_singlestep,
    er_sde,
    euler,
    gradient_estimation,
    heun,
    ipndm,
    lms,
    pndm,
    res_multistep,
    restart,
    sa_solver,
    seeds,
    unipc,
)

# in the order in which they are listed to users
SOLVERS: Mapping[str, Solver] = {
    solver.name: solver for solver in sorted((each for file in _FILES for each in file.SOLVERS), key=lambda s: s.name)
}


@dataclass(frozen=True)
class Scheduler:
    """A solver, and the sigma schedule that the full name asks for; None leaves it to the checkpoint."""

    solver: Solver
    sigma_schedule: str | None = None


# every full name: a solver's, alone or with one of its sigma schedules
SCHEDULERS: Mapping[str, Scheduler] = {
    name if schedule is None else f"{name}_{schedule}": Scheduler(solver, schedule)
    for name, solver in SOLVERS.items()
    for schedule in (None, *solver.schedules)
}

# the class of diffusers behind each of jaxl's solvers
DIFFUSERS_CLASSES: Mapping[str, str] = {
    name: solver.diffusers.name for name, solver in SOLVERS.items() if solver.diffusers is not None
}
# and the solver that each of these classes is as it comes: its first one
USUAL_SOLVERS: Mapping[str, str] = {
    kind: next(name for name, each in DIFFUSERS_CLASSES.items() if each == kind)
    for kind in sorted(set(DIFFUSERS_CLASSES.values()))
}
