"""What diffusers, AUTOMATIC1111's web UI and ComfyUI call jaxl's schedulers.

Spelling is free: case, spaces, `_` and `-` do not count, and `pp` is `++`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from jaxl.diffusion.schedule import CLASSES, SIGMA_SCHEDULES
from jaxl.errors import InputError

# A1111's samplers
_A1111: Mapping[str, str] = {
    "ddim": "DDIM",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m_sde": "DPM++ 2M SDE",
    "dpm++2s_a": "DPM++ 2S a",
    "dpm++3m_sde": "DPM++ 3M SDE",
    "dpm++sde": "DPM++ SDE",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "edm_dpm++2m": "DPM++ 2M",
    "edm_euler": "Euler",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "unipc": "UniPC",
}
_A1111_SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
    "uniform": "Uniform",
    "ays": "Align Your Steps",
}
# what "Automatic" is there for a solver (`modules/sd_samplers_kdiffusion.py`); for the others it is uniform
AUTOMATIC: Mapping[str, str] = {
    "dpm++2m": "karras",
    "dpm++2m_sde": "exponential",
    "dpm++2s_a": "karras",
    "dpm++3m_sde": "exponential",
    "dpm++sde": "karras",
    "dpm2": "karras",
    "dpm2_a": "karras",
}
# the levels that the checkpoint's config asks for, which have no name elsewhere
CHECKPOINT = "Checkpoint"

# further names, as they look without what does not count
_SOLVER_ALIASES: Mapping[str, tuple[str, ...]] = {
    "euler_a": ("eulerancestral",),
    "dpm2_a": ("dpm2ancestral",),
    "dpm++2m": ("dpmsolver", "dpmsolver++", "dpmsolvermultistep"),
    "dpm++2s_a": ("dpm++2sancestral",),
    "dpm++2m_sde": ("dpm++2msdegpu",),
    "dpm++3m_sde": ("dpm++3msdegpu",),
    "dpm++sde": ("dpm++sdegpu",),
    "edm_dpm++2m": ("edmdpm++",),
    "unipc": ("unipcbh2",),
}
# InvokeAI's and A1111's older short forms, and ComfyUI's "normal"
_SCHEDULE_ALIASES: Mapping[str, tuple[str, ...]] = {
    "karras": ("k", "ka"),
    "exponential": ("exp",),
    "uniform": ("normal",),
}
_NO_SCHEDULE = ("", "automatic", "checkpoint")

# what others have and jaxl lacks, with the nearest it has
_LACKING: Mapping[str, str] = {
    "restart": "heun_karras",
    "dpmfast": "dpm2",
    "dpmadaptive": "dpm++3m",
    "dpmad": "dpm++3m",
    "dpm++2s": "dpm++2s_a",
    "dpmsolversinglestepscheduler": "dpm++2s_a",
    "dpm++2msdeheun": "dpm++2m_sde",
    "ddimcfg++": "ddim",
    "eulercfg++": "euler",
    "eulerancestralcfg++": "euler_a",
    "heun++2": "heun",
    "ipndm": "lms",
    "sasolver": "dpm++2m_sde",
    "sasolverscheduler": "dpm++2m_sde",
}


def find_name(name: str, solvers: Mapping[str, Sequence[str]]) -> str:
    """The full name of the scheduler that is called `name` in jaxl or elsewhere.

    `solvers` are the names of jaxl's solvers, and the sigma schedules each can follow; one that counts timesteps spaces
    them uniformly. Raises InputError that offers the nearest.
    """
    for plain in _readings(name):
        for solver, schedules in solvers.items():
            for spelling in _spellings(solver):
                if plain.startswith(spelling):
                    rest = plain.removeprefix(spelling)
                    if rest in _NO_SCHEDULE or (not schedules and rest in _schedule_spellings("uniform")):
                        return solver
                    for schedule in schedules:
                        if rest in _schedule_spellings(schedule):
                            return f"{solver}_{schedule}"
    raise InputError("scheduler", name, _nearest(name, solvers))


def a1111_name(name: str) -> tuple[str, str]:
    """A1111's sampler and schedule type for a full name; a sampler that it lacks keeps jaxl's name.

    A solver alone has the levels of the checkpoint. They are "Automatic" where A1111 reads that as no wish, and
    CHECKPOINT where it would make Karras or exponential sigmas of it.
    """
    schedule = next((each for each in SIGMA_SCHEDULES if name.endswith(f"_{each}")), None)
    solver = name.removesuffix(f"_{schedule}")
    if schedule is None:
        own = "Karras" if solver.startswith("edm_") else CHECKPOINT if solver in AUTOMATIC else "Automatic"
    else:
        own = _A1111_SCHEDULES[schedule]
    return _A1111.get(solver, solver), own


def _readings(name: object) -> list[str]:
    """The name without what does not count, and without the k that k-diffusion's samplers have elsewhere."""
    plain = _plain(name) if isinstance(name, str) else ""
    return [plain, plain[1:]] if plain.startswith("k") else [plain]


def _spellings(solver: str) -> list[str]:
    """The solver's names, the longest first."""
    names = {solver, *_SOLVER_ALIASES.get(solver, ())}
    if not solver.startswith("edm_") and solver in _A1111:
        names.add(_A1111[solver])
    names |= {known for known, each in CLASSES.items() if each.names[:1] == (solver,)}
    return sorted(map(_plain, names), key=len, reverse=True)


def _schedule_spellings(schedule: str) -> tuple[str, ...]:
    return (_plain(schedule), _plain(_A1111_SCHEDULES[schedule]), *_SCHEDULE_ALIASES.get(schedule, ()))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower().replace("pp", "++")


def _nearest(name: object, solvers: Mapping[str, Sequence[str]]) -> str:
    known = (
        f"known: {', '.join(sorted(solvers))}, and most with a sigma schedule: euler_karras, dpm++2m_sgm_uniform, ..."
    )
    readings = _readings(name)
    # with a sigma schedule, too
    ends = ("", *(each for schedule in SIGMA_SCHEDULES for each in _schedule_spellings(schedule)))
    lacking = next((near for known, near in _LACKING.items() for end in ends if known + end in readings), None)
    if lacking is not None:
        return f"jaxl has no such sampler; the nearest is {lacking!r}; {known}"
    full = [*solvers, *(f"{solver}_{schedule}" for solver in solvers for schedule in solvers[solver])]
    close = difflib.get_close_matches(str(name).lower(), full, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? {known}" if close else known
