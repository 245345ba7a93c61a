from __future__ import annotations

import re

import pytest

from jaxl.diffusion.names import _LACKING, a1111_name, find_name
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.schedulers import DIFFUSERS_CLASSES, SCHEDULERS, SOLVERS
from jaxl.diffusion.tables import scheduler_name
from jaxl.errors import InputError

CONFIG = SchedulerConfig()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DPM++ 2M Karras", "dpm++2m_karras"),
        ("DPM++ 2M", "dpm++2m"),
        ("dpm++ 2m sde", "dpm++2m_sde"),
        ("DPM++ 2M SDE SGM Uniform", "dpm++2m_sde_sgm_uniform"),
        ("DPM++ 3M SDE Exponential", "dpm++3m_sde_exponential"),
        ("DPM++ 2S a Karras", "dpm++2s_a_karras"),
        ("DPM++ SDE", "dpm++sde"),
        ("DPM2 a", "dpm2_a"),
        ("Euler a", "euler_a"),
        ("Euler Automatic", "euler"),
        ("Euler Align Your Steps", "euler_ays_a1111"),
        ("euler AYS", "euler_ays"),
        ("Euler KL Optimal", "euler_kl_optimal"),
        ("Euler DDIM", "euler_ddim_uniform"),
        ("DPM++ 2M Simple", "dpm++2m_simple"),
        ("heun linear_quadratic", "heun_linear_quadratic"),
        ("LMS Karras", "lms_karras"),
        ("HEUN", "heun"),
        ("DDIM", "ddim"),
        ("dpmpp_2m", "dpm++2m"),
        ("dpmpp_2m_sde_gpu", "dpm++2m_sde"),
        ("dpmpp_sde karras", "dpm++sde_karras"),
        ("dpmpp_2s_ancestral", "dpm++2s_a"),
        ("dpm_2_ancestral", "dpm2_a"),
        ("euler_ancestral normal", "euler_a_uniform"),
        ("Euler Uniform", "euler_uniform"),
        ("DPM++ 2M Checkpoint", "dpm++2m"),
        ("DDIM Uniform", "ddim"),
        ("lcm normal", "lcm"),
        ("DPMSolverMultistep", "dpm++2m"),
        # InvokeAI's, then those that A1111 had before it chose schedules apart
        ("euler_k", "euler_karras"),
        ("heun_k", "heun_karras"),
        ("lms_k", "lms_karras"),
        ("deis_k", "deis_karras"),
        ("unipc_k", "unipc_karras"),
        ("kdpm_2", "dpm2"),
        ("kdpm_2_k", "dpm2_karras"),
        ("kdpm_2_a_k", "dpm2_a_karras"),
        ("dpmpp_2m_k", "dpm++2m_karras"),
        ("dpmpp_2m_sde_k", "dpm++2m_sde_karras"),
        ("dpmpp_3m_k", "dpm++3m_karras"),
        ("dpmpp_sde_k", "dpm++sde_karras"),
        ("lcm", "lcm"),
        ("ddpm", "ddpm"),
        ("tcd", "tcd"),
        ("k_euler", "euler"),
        ("k_euler_a", "euler_a"),
        ("k_euler_ancestral", "euler_a"),
        ("k_lms", "lms"),
        ("k_lms_ka", "lms_karras"),
        ("k_heun", "heun"),
        ("k_dpm_2", "dpm2"),
        ("dpm_2_a", "dpm2_a"),
        ("k_dpm_2_a_ka", "dpm2_a_karras"),
        ("k_dpmpp_2m", "dpm++2m"),
        ("dpmpp_2m_ka", "dpm++2m_karras"),
        ("k_dpmpp_2s_a_ka", "dpm++2s_a_karras"),
        ("k_dpmpp_sde", "dpm++sde"),
        ("k_dpmpp_3m_sde_exp", "dpm++3m_sde_exponential"),
        ("dpmpp_2s", "dpm++2s"),
        ("dpmpp_2s_k", "dpm++2s_karras"),
        ("DPMSolverSinglestepScheduler", "dpm++2s"),
        ("Restart Karras", "restart_karras"),
        ("DPM fast", "dpm_fast"),
        ("k_dpm_fast", "dpm_fast"),
        ("DPM++ 2M SDE Heun Karras", "dpm++2m_sde_heun_karras"),
        ("dpmpp_2m_sde_heun_gpu", "dpm++2m_sde_heun"),
        ("HeunPP2", "heunpp2"),
        ("DDIM CFG++", "ddim_cfg++"),
        ("ipndm normal", "ipndm_uniform"),
        ("ipndm_v", "ipndm_v"),
        ("euler_cfg_pp", "euler_cfg++"),
        ("dpmpp_2m_cfg_pp", "dpm++2m_cfg++"),
        ("dpmpp_2s_ancestral_cfg_pp", "dpm++2s_a_cfg++"),
        ("res_multistep_ancestral_cfg_pp", "res_multistep_a_cfg++"),
        ("gradient_estimation_cfg_pp normal", "gradient_estimation_cfg++_uniform"),
        ("euler_ancestral_cfg_pp sgm_uniform", "euler_a_cfg++_sgm_uniform"),
        ("res_multistep_ancestral", "res_multistep_a"),
        ("sa_solver_pece", "sa_solver_pece"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("KDPM2DiscreteScheduler", "dpm2"),
        ("EDMDPMSolverMultistepScheduler", "edm_dpm++2m"),
    ],
)
def test_other_programs_names(theirs: str, ours: str) -> None:
    assert scheduler_name(CONFIG, theirs) == ours


def test_every_class_of_diffusers_and_every_name_of_jaxl_is_a_name() -> None:
    for name, kind in DIFFUSERS_CLASSES.items():
        assert DIFFUSERS_CLASSES[scheduler_name(CONFIG, kind)] == kind, name
    for name in SCHEDULERS:
        assert scheduler_name(CONFIG, name) == name


def test_a1111_reads_back_what_is_written_for_it() -> None:
    assert a1111_name("dpm++2m") == ("DPM++ 2M", "Checkpoint")
    assert a1111_name("dpm++2m_uniform") == ("DPM++ 2M", "Uniform")
    assert a1111_name("dpm++2m_sde_karras") == ("DPM++ 2M SDE", "Karras")
    assert a1111_name("euler_sgm_uniform") == ("Euler", "SGM Uniform")
    assert a1111_name("euler_a") == ("Euler a", "Automatic")
    assert a1111_name("dpm++3m") == ("dpm++3m", "Automatic")
    for name in SCHEDULERS:
        if SCHEDULERS[name].solver.form_of is None:
            assert scheduler_name(CONFIG, " ".join(a1111_name(name))) == name


@pytest.mark.parametrize(
    "theirs",
    [
        *("DPM adaptive", "SASolverScheduler", "k_dpm_ad", "DPM adaptive Karras", "IPNDMScheduler"),
    ],
)
def test_samplers_that_jaxl_lacks_are_refused_with_the_nearest(theirs: str) -> None:
    with pytest.raises(InputError, match=rf"scheduler='{re.escape(theirs)}': jaxl has no such sampler; the nearest is"):
        scheduler_name(CONFIG, theirs)
    assert set(_LACKING.values()) <= set(SCHEDULERS)


@pytest.mark.parametrize(
    "name", ["", "k", "Karras", "euler karras beta", "ddim_karras", "edm_euler uniform", 3, b"euler"]
)
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(InputError, match=r"scheduler=.*known: ") as caught:
        scheduler_name(CONFIG, name)  # pyright: ignore[reportArgumentType]
    assert all(solver in str(caught.value) for solver in SOLVERS)


def test_lcm_with_a_sigma_schedule_is_that_over_sigmas() -> None:
    assert find_name("LCM") == "lcm"
    assert find_name("lcm sgm_uniform") == "lcm_sigmas_sgm_uniform"
