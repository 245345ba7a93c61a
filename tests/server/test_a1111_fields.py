"""Samplers and schedules of the web UI, by the names that its clients send."""

import pytest

from jaxl.diffusion.names import a1111_name
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.errors import InputError
from jaxl.server.a1111.fields import scheduler_of
from jaxl.server.errors import ApiError


@pytest.mark.parametrize(
    ("sampler", "schedule", "name"),
    [
        (None, None, None),
        (None, "Automatic", None),
        (None, "Karras", "euler_karras"),
        ("Euler a", None, "euler_a"),
        ("euler a", "automatic", "euler_a"),
        ("Euler", "Karras", "euler_karras"),
        ("Euler", "Align Your Steps", "euler_ays_a1111"),
        ("Euler", "align_your_steps", "euler_ays_a1111"),
        ("Restart", None, "restart_karras"),
        ("DPM++ 2M SDE Heun", "Automatic", "dpm++2m_sde_heun_exponential"),
        ("Euler", "KL Optimal", "euler_kl_optimal"),
        ("DPM++ 2M", None, "dpm++2m_karras"),
        ("DPM++ 2M", "Automatic", "dpm++2m_karras"),
        ("DPM++ 2M", "Uniform", "dpm++2m_uniform"),
        ("DPM++ 2M", "normal", "dpm++2m_uniform"),
        ("DPM++ 2M", "Checkpoint", "dpm++2m"),
        ("DPM++ 2M Uniform", None, "dpm++2m_uniform"),
        ("DDIM", "Uniform", "ddim"),
        ("DPM++ 2M Karras", "Automatic", "dpm++2m_karras"),
        ("DPM++ 2M Karras", "Exponential", "dpm++2m_exponential"),
        ("DPM++ 2M SDE", "Automatic", "dpm++2m_sde_exponential"),
        ("DDIM", "Automatic", "ddim"),
        ("Euler", "", "euler"),
    ],
)
def test_samplers(sampler: str | None, schedule: str | None, name: str | None) -> None:
    assert scheduler_of(sampler, schedule, "euler") == name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_written_for_the_web_ui_is_read_back(name: str) -> None:
    read = scheduler_of(*a1111_name(name), "euler")
    # of a model with EDM noise, whose levels are Karras's
    own = SCHEDULERS[name].solver.form_of if name.endswith("_a1111") and not SCHEDULERS[name].sigma_schedule else None
    known = {"edm_euler": "euler_karras", "edm_dpm++2m": "dpm++2m_karras"}
    assert read == known.get(name, own or name.removeprefix("edm_"))


@pytest.mark.parametrize("schedule", ["Kohaku", "a", "sde", "2m"])
def test_unknown_schedules(schedule: str) -> None:
    with pytest.raises(ApiError, match=r"scheduler=.*Karras"):
        scheduler_of("Euler", schedule, "euler")


def test_unknown_samplers() -> None:
    with pytest.raises(InputError, match="nearest is 'dpm\\+\\+3m'"):
        scheduler_of("DPM adaptive", None, "euler")
