"""Names of schedulers, read as diffusers, AUTOMATIC1111's web UI and ComfyUI write them, and written as A1111 does.

Spelling is free: case, spaces, `_` and `-` do not count, and `pp` is `++`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from jaxl.diffusion.schedulers import SCHEDULERS, SOLVERS, USUAL_SOLVERS
from jaxl.diffusion.sigma_schedules import SIGMA_SCHEDULES
from jaxl.diffusion.solvers.solver import Solver
from jaxl.errors import InputError

# the sigma schedule that "Automatic" is there for a solver; for the others it is uniform
AUTOMATIC: Mapping[str, str] = {name: solver.automatic for name, solver in SOLVERS.items() if solver.automatic}
# the levels that the checkpoint's config asks for, which have no name elsewhere
CHECKPOINT = "Checkpoint"

# who stands in for a solver where a sigma schedule is asked for that it cannot follow
_OVER_SIGMAS: Mapping[str, str] = {"lcm": "lcm_sigmas"}

_NO_SCHEDULE = ("", "automatic", "checkpoint")

# what others have and jaxl lacks, with the nearest it has
_LACKING: Mapping[str, str] = {
    # its steps depend on the picture, so that images would leave a batch at different rows
    "dpmadaptive": "dpm++3m",
    "dpmad": "dpm++3m",
    "sasolverscheduler": "sa_solver",
    "ipndmscheduler": "ipndm",
}


def find_name(name: str) -> str:
    """Return the full name of the scheduler that is called `name` in jaxl or elsewhere.

    A solver that counts timesteps spaces them uniformly. Raises InputError that offers the nearest.
    """
    for plain in _readings(name):
        for solver in SOLVERS.values():
            for spelling in spellings(solver):
                if plain.startswith(spelling):
                    rest = plain.removeprefix(spelling)
                    if rest in _NO_SCHEDULE or (not solver.schedules and rest in _schedule_spellings("uniform")):
                        return solver.name
                    for schedule in solver.schedules:
                        if rest in _schedule_spellings(schedule):
                            return f"{solver.name}_{schedule}"
        for name_of, other in _OVER_SIGMAS.items():
            for schedule in SOLVERS[other].schedules:
                if plain in [name_of + each for each in _schedule_spellings(schedule)]:
                    return f"{other}_{schedule}"
    raise InputError("scheduler", name, _nearest(name))


def a1111_name(name: str) -> tuple[str, str]:
    """A1111's sampler and schedule type for a full name; a sampler that it lacks keeps jaxl's name.

    A solver alone has the levels of the checkpoint. They are "Automatic" where A1111 reads that as no wish, and
    CHECKPOINT where it would make Karras or exponential sigmas of it.
    """
    full = SCHEDULERS.get(name)
    schedule = None if full is None else full.sigma_schedule
    solver = name if full is None else full.solver.name
    known = SOLVERS.get(solver)
    if schedule is not None:
        own = SIGMA_SCHEDULES[schedule].a1111 or schedule
    elif known is not None and known.edm:
        own = "Karras"
    else:
        own = CHECKPOINT if solver in AUTOMATIC else "Automatic"
    return solver if known is None or known.a1111 is None else known.a1111, own


def _readings(name: object) -> list[str]:
    """The name without what does not count, and without the k that k-diffusion's samplers have elsewhere."""
    plain = _plain(name) if isinstance(name, str) else ""
    return [plain, plain[1:]] if plain.startswith("k") else [plain]


def spellings(solver: Solver) -> list[str]:
    """Return the solver's names without what does not count, the longest first.

    A sampler of A1111 and a class of diffusers that several solvers share means one of them alone: the one of which the
    others are forms, and the class's usual solver.
    """
    names = [solver.name, *solver.aliases]
    if solver.a1111 and solver.form_of is None:
        names.append(solver.a1111)
    if solver.diffusers and USUAL_SOLVERS[solver.diffusers.name] == solver.name:
        names.append(solver.diffusers.name)
    return sorted({_plain(name) for name in names}, key=len, reverse=True)


def _schedule_spellings(schedule: str) -> list[str]:
    known = SIGMA_SCHEDULES[schedule]
    return [_plain(name) for name in (known.name, known.a1111, *known.aliases) if name is not None]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower().replace("pp", "++"))


def _nearest(name: object) -> str:
    known = f"known: {', '.join(SOLVERS)}, and most with a sigma schedule: euler_karras, dpm++2m_sgm_uniform, ..."
    readings = _readings(name)
    # with a sigma schedule, too
    ends = ("", *(each for schedule in SIGMA_SCHEDULES for each in _schedule_spellings(schedule)))
    lacking = next((near for known, near in _LACKING.items() for end in ends if known + end in readings), None)
    if lacking is not None:
        return f"jaxl has no such sampler; the nearest is {lacking!r}; {known}"
    close = difflib.get_close_matches(str(name).lower(), SCHEDULERS, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? {known}" if close else known
