"""The records of the solvers: each is listed, and is found by every one of its names."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

from jaxl.diffusion import solvers
from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.names import a1111_name, find_name, spellings
from jaxl.diffusion.schedule import EDM, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.schedulers import DIFFUSERS_CLASSES, SOLVERS
from jaxl.diffusion.tables import build_table


def test_the_solvers_of_every_file_are_listed_once_and_in_order() -> None:
    files = [import_module(f"{solvers.__name__}.{file.name}") for file in pkgutil.iter_modules(solvers.__path__)]
    assert sorted(solver.name for file in files for solver in getattr(file, "SOLVERS", ())) == list(SOLVERS)


def test_no_two_solvers_share_a_name() -> None:
    names = [name for solver in SOLVERS.values() for name in spellings(solver)]
    assert len(set(names)) == len(names) > len(SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_found_by_its_names(name: str) -> None:
    solver = SOLVERS[name]
    for own in (name, *solver.aliases):
        assert find_name(own) == name
    if solver.a1111 is not None:
        assert a1111_name(name)[0] == solver.a1111
        assert find_name(solver.a1111) == (solver.form_of or name)
    if solver.diffusers is not None:
        kind = solver.diffusers.name
        assert DIFFUSERS_CLASSES[find_name(kind)] == kind
        assert DIFFUSERS_CLASSES[read_scheduler_config({"_class_name": kind}).scheduler] == kind


# those that add noise, and have no scale of it to choose
NOISE_WITHOUT_ETA = {"ddpm", "er_sde", "lcm", "lcm_sigmas", "restart"}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_says_whether_it_adds_noise(name: str) -> None:
    solver = SOLVERS[name]
    config = SchedulerConfig(NoiseSchedule(edm=EDM())) if solver.edm else SchedulerConfig()
    assert build_table(config, 25, name).adds_noise == (bool(solver.eta) or name in NOISE_WITHOUT_ETA)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_can_follow_the_schedule_that_a1111_has_for_it(name: str) -> None:
    solver = SOLVERS[name]
    assert solver.automatic in (None, *solver.schedules)
    assert solver.automatic is None or solver.a1111 is not None
