"""What diffusers, AUTOMATIC1111's web UI and ComfyUI call jaxl's schedulers.

Spelling is free: case, spaces, `_` and `-` do not count, and `pp` is `++`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from jaxl.diffusion.schedule import CLASSES, SIGMA_SCHEDULES
from jaxl.errors import InputError

# A1111's samplers, and the schedule type that stands for none there; "Automatic" would turn some to Karras sigmas
_A1111: Mapping[str, tuple[str, str]] = {
    "ddim": ("DDIM", "Automatic"),
    "dpm++2m": ("DPM++ 2M", "Uniform"),
    "dpm++2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "dpm++2s_a": ("DPM++ 2S a", "Uniform"),
    "dpm++3m_sde": ("DPM++ 3M SDE", "Uniform"),
    "dpm++sde": ("DPM++ SDE", "Uniform"),
    "dpm2": ("DPM2", "Uniform"),
    "dpm2_a": ("DPM2 a", "Uniform"),
    "edm_dpm++2m": ("DPM++ 2M", "Karras"),
    "edm_euler": ("Euler", "Karras"),
    "euler": ("Euler", "Automatic"),
    "euler_a": ("Euler a", "Automatic"),
    "heun": ("Heun", "Automatic"),
    "lcm": ("LCM", "Automatic"),
    "lms": ("LMS", "Automatic"),
    "plms": ("PLMS", "Automatic"),
    "unipc": ("UniPC", "Automatic"),
}
_A1111_SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
    "ays": "Align Your Steps",
}

# further names, as they look without what does not count
_SOLVER_ALIASES: Mapping[str, tuple[str, ...]] = {
    "euler_a": ("eulerancestral",),
    "dpm2": ("kdpm2",),
    "dpm2_a": ("dpm2ancestral", "kdpm2ancestral"),
    "dpm++2s_a": ("dpm++2sancestral",),
    "dpm++2m_sde": ("dpm++2msdegpu",),
    "dpm++3m_sde": ("dpm++3msdegpu",),
    "dpm++sde": ("dpm++sdegpu",),
    "edm_dpm++2m": ("edmdpm++",),
}
_NO_SCHEDULE = ("", "automatic", "uniform", "normal")

# what others have and jaxl lacks, with the nearest it has
_LACKING: Mapping[str, str] = {
    "restart": "heun_karras",
    "dpmfast": "dpm2",
    "dpmadaptive": "dpm++3m",
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

    `solvers` are the names of jaxl's solvers, and the sigma schedules each can follow. Raises InputError that offers
    the nearest.
    """
    if isinstance(name, str):
        plain = _plain(name)
        for solver in solvers:
            for spelling in _spellings(solver):
                if plain.startswith(spelling):
                    rest = plain.removeprefix(spelling)
                    if rest in _NO_SCHEDULE:
                        return solver
                    for schedule in solvers[solver]:
                        if rest in (_plain(schedule), _plain(_A1111_SCHEDULES[schedule])):
                            return f"{solver}_{schedule}"
    raise InputError("scheduler", name, _nearest(str(name), solvers))


def a1111_name(name: str) -> tuple[str, str]:
    """A1111's sampler and schedule type for a full name; a sampler that it lacks keeps jaxl's name."""
    schedule = next((each for each in SIGMA_SCHEDULES if name.endswith(f"_{each}")), None)
    solver = name.removesuffix(f"_{schedule}")
    sampler, plain = _A1111.get(solver, (solver, "Automatic"))
    return sampler, plain if schedule is None else _A1111_SCHEDULES[schedule]


def _spellings(solver: str) -> list[str]:
    """The solver's names, the longest first."""
    names = {solver, *_SOLVER_ALIASES.get(solver, ())}
    if not solver.startswith("edm_") and solver in _A1111:
        names.add(_A1111[solver][0])
    names |= {known for known, each in CLASSES.items() if each.names[:1] == (solver,)}
    return sorted(map(_plain, names), key=len, reverse=True)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower().replace("pp", "++")


def _nearest(name: str, solvers: Mapping[str, Sequence[str]]) -> str:
    known = (
        f"known: {', '.join(sorted(solvers))}, and most with a sigma schedule: euler_karras, dpm++2m_sgm_uniform, ..."
    )
    lacking = _LACKING.get(_plain(name))
    if lacking is not None:
        return f"jaxl has no such sampler; the nearest is {lacking!r}; {known}"
    full = [*solvers, *(f"{solver}_{schedule}" for solver in solvers for schedule in solvers[solver])]
    close = difflib.get_close_matches(name.lower(), full, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? {known}" if close else known
