"""The schedulers by name, and `build_table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from jaxl.diffusion.ddim import ddim
from jaxl.diffusion.dpm import dpmpp_2m, dpmpp_2m_sde
from jaxl.diffusion.euler import euler, euler_ancestral
from jaxl.diffusion.rows import COLUMNS, MAX_ROWS, Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.errors import CheckpointError, InputError, nearest

__all__ = ["COLUMNS", "MAX_ROWS", "SCHEDULERS", "Scheduler", "Table", "build_table"]


@dataclass(frozen=True)
class Scheduler:
    """A function `(config, steps)`, or `(config, steps, eta)` where `eta` has a default here, that builds a table.

    `karras` forces Karras sigmas on or off; None leaves them as the checkpoint says.
    """

    build: Callable[..., Table]
    eta: float | None = None
    karras: bool | None = None


SCHEDULERS: Mapping[str, Scheduler] = {
    "ddim": Scheduler(ddim, eta=0.0),
    "dpm++2m": Scheduler(dpmpp_2m),
    "dpm++2m_karras": Scheduler(dpmpp_2m, karras=True),
    "dpm++2m_sde": Scheduler(dpmpp_2m_sde, eta=1.0),
    "dpm++2m_sde_karras": Scheduler(dpmpp_2m_sde, eta=1.0, karras=True),
    "euler": Scheduler(euler),
    "euler_karras": Scheduler(euler, karras=True),
    # diffusers' ancestral class takes no Karras sigmas, so a checkpoint's wish for them does not reach it
    "euler_a": Scheduler(euler_ancestral, eta=1.0, karras=False),
    "euler_a_karras": Scheduler(euler_ancestral, eta=1.0, karras=True),
}


def scheduler_name(config: SchedulerConfig, scheduler: str | None = None) -> str:
    """The full name of what `build_table` runs for these arguments, with `_karras` if the checkpoint asks for that.

    Raises InputError for an unknown name and CheckpointError if the checkpoint's own scheduler is not supported.
    """
    if scheduler is None and config.scheduler not in SCHEDULERS:
        raise CheckpointError(
            f"the checkpoint's own scheduler {config.scheduler!r} is not supported; choose one with scheduler=: "
            f"{', '.join(SCHEDULERS)}"
        )
    name = config.scheduler if scheduler is None else scheduler
    if name not in SCHEDULERS:
        raise InputError("scheduler", name, nearest(name, SCHEDULERS))
    follows = config.use_karras_sigmas and SCHEDULERS[name].karras is None and f"{name}_karras" in SCHEDULERS
    return f"{name}_karras" if follows else name


def build_table(
    config: SchedulerConfig, steps: int, scheduler: str | None = None, *, eta: float | None = None
) -> Table:
    """The table of `scheduler` (a name in SCHEDULERS; None means the checkpoint's own) for `steps` network calls.

    `steps` is 1 to the number of training timesteps. `eta`, 0 to 1, scales the noise that a scheduler adds.
    Raises InputError for a wrong argument and CheckpointError where the checkpoint's config does not fit the scheduler.
    """
    name = scheduler_name(config, scheduler)
    most = min(config.noise.num_train_timesteps, MAX_ROWS)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= most:
        raise InputError("steps", steps, f"must be a whole number from 1 to {most}")
    chosen = SCHEDULERS[name]
    if chosen.karras is not None:
        config = replace(config, use_karras_sigmas=chosen.karras)
    if eta is not None and not 0 <= eta <= 1:
        raise InputError("eta", eta, "must be a number from 0 to 1")
    if chosen.eta is None:
        if eta:
            raise InputError("eta", eta, f"scheduler {name!r} adds no noise, so it takes no eta; leave it out")
        return chosen.build(config, int(steps))
    return chosen.build(config, int(steps), chosen.eta if eta is None else float(eta))
