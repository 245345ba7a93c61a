"""What is known of a solver, in one record: its function, what it takes, and its names elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxl.config import Json
from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.sigma_schedules import SIGMA_SCHEDULES
from jaxl.diffusion.spacing import Levels

# defaults of classes that were written for latent diffusion
LATENT_BETAS: Json = {"beta_start": 0.00085, "beta_end": 0.012}
LATENT_SCHEDULE: Json = {**LATENT_BETAS, "beta_schedule": "scaled_linear"}
# of the classes for EDM noise
EDM_FIXED: Mapping[str, tuple[Any, ...]] = {
    "sigma_schedule": ("karras", "exponential"),
    "prediction_type": ("epsilon", "v_prediction"),
}


@dataclass(frozen=True)
class DiffusersClass:
    """A scheduler class of diffusers whose config jaxl reads.

    `choose` finds the solver that a config means; without it that is the first one of the class. `defaults` are those
    of its fields that differ from SchedulerConfig's, since an absent field means the default of the class. `options`
    are fields of SchedulerConfig that it has for its solvers alone, and `fixed` fields of which jaxl implements the
    given values. `edm` and `flow` say that its noise is of that kind.
    """

    name: str
    choose: Callable[[Json], str] | None = None
    defaults: Json = field(default_factory=dict)
    options: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    edm: bool = False
    flow: bool = False


@dataclass(frozen=True)
class Solver:
    """A solver, which makes a table: `solve(config, levels(config, steps), randomness)`.

    `eta` is the default of a solver that adds noise of its own, None for one that has no such scale; `brownian` says
    that this is the noise of an SDE, which other programs take from a Brownian path over sigma. `churns` says that it
    knows churn, `finals` that it can end at another level than 0, and `custom` which levels of one's own it takes:
    `timesteps`, `sigmas`. `schedules` are the sigma schedules it can follow; a solver that counts timesteps has none.
    `follows` says that it follows one where the checkpoint asks, `flows` that it is for straight paths too. `rows` is
    the most that a step has, `solver_types` is what a call may choose for `solver_type`, and `options` are the fields
    of SchedulerConfig that its name stands for.

    `diffusers` is the class that does what it does, None if there is none. `a1111` is the sampler of A1111's web UI,
    and `automatic` the sigma schedule that "Automatic" is for it there (`modules/sd_samplers_kdiffusion.py`); None is
    uniform. `aliases` are further names, ComfyUI's and older ones, spelled freely as `names` reads them. `form_of` is
    the solver that A1111's name means, where this one is another form of it.
    """

    name: str
    solve: Callable[[SchedulerConfig, Levels, Randomness], Table]
    levels: Callable[[SchedulerConfig, int], Levels]
    eta: float | None = None
    brownian: bool = False
    churns: bool = False
    finals: bool = False
    custom: tuple[str, ...] = ("timesteps", "sigmas")
    schedules: tuple[str, ...] = tuple(SIGMA_SCHEDULES)
    follows: bool = True
    flows: bool = False
    rows: int = 2
    solver_types: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    diffusers: DiffusersClass | None = None
    a1111: str | None = None
    automatic: str | None = None
    aliases: tuple[str, ...] = ()
    form_of: str | None = None

    @property
    def edm(self) -> bool:
        """Whether it is for models that were trained with EDM noise alone."""
        return self.diffusers is not None and self.diffusers.edm
