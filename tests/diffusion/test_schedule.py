from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest

from jaxl.diffusion.diffusers_config import config_for_solver, read_scheduler_config
from jaxl.diffusion.schedule import EDM, NoiseSchedule, SchedulerConfig
from jaxl.diffusion.tables import scheduler_name
from jaxl.errors import CheckpointError

SDXL = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
EULER = {"_class_name": "EulerDiscreteScheduler"}
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EDM_EULER = {"_class_name": "EDMEulerScheduler"}
EDM_DPM = {"_class_name": "EDMDPMSolverMultistepScheduler"}


def test_sdxl_noise_runs_over_the_sigmas_everybody_quotes() -> None:
    sigmas = SDXL.sigmas()
    assert sigmas.dtype == np.float64
    assert sigmas[[0, -1]] == pytest.approx([0.02917, 14.6146], rel=1e-3)
    assert (np.diff(sigmas) > 0).all()


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_first_share_of_signal_is_one_minus_the_first_beta(kind: str) -> None:
    noise = replace(SDXL, beta_schedule=kind)
    first = {
        "squaredcos_cap_v2": 1 - (math.cos(0.009 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    }
    assert noise.alphas_cumprod()[0] == pytest.approx(1 - first.get(kind, 0.00085), abs=1e-12)


def test_trained_betas_replace_the_formula() -> None:
    noise = NoiseSchedule(num_train_timesteps=3, trained_betas=(0.1, 0.2, 0.5))
    np.testing.assert_allclose(noise.alphas_cumprod(), [0.9, 0.72, 0.36])


def test_zero_terminal_snr_ends_at_no_signal_and_keeps_the_first_level() -> None:
    rescaled = replace(SDXL, rescale_betas_zero_snr=True)
    assert rescaled.alphas_cumprod()[-1] == 0
    assert rescaled.alphas_cumprod()[0] == pytest.approx(SDXL.alphas_cumprod()[0], rel=1e-12)
    assert rescaled.sigmas()[-1] == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta_end": 1.5}, "between 0 and 1"),
        ({"beta_start": 0.0}, "between 0 and 1"),
        ({"trained_betas": [0.1, 0.2]}, "2 betas for num_train_timesteps=1000"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"num_train_timesteps": "many"}, "whole number"),
        ({"beta_start": "low"}, "low"),
        ({"steps_offset": 0.5}, "whole number"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"timestep_spacing": "ays"}, "timestep_spacing='ays'"),
        ({"final_sigmas_type": "tiny"}, "final_sigmas_type='tiny'"),
        ({"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ({"thresholding": True}, "thresholding=True"),
        ({"_class_name": "SASolverScheduler", "beta_start": 0.001, "use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"_class_name": "SASolverScheduler", "beta_start": 0.001, "beta_schedule": "sigmoid"}, "'sigmoid'"),
        ({"use_beta_sigmas": True, "use_karras_sigmas": True}, "cannot be karras and beta at once"),
        ({"sigma_max": 700.0}, "sigma_max=700.0"),
        ({"brightness": 2}, "brightness=2"),
        ({"_class_name": "FlowMapEulerDiscreteScheduler"}, "'FlowMapEulerDiscreteScheduler'.*EulerDiscrete"),
        ({**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        ({**FLOW, "shift_terminal": 0.1}, "shift_terminal=0.1"),
        ({**FLOW, "shift": 0}, "shift=0.0 must be a number above 0"),
        ({"_class_name": None}, "scheduler class None"),
        ({**DPM, "algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver'"),
        ({**DPM, "solver_order": 4}, "solver_order=4"),
        ({**EDM_EULER, "prediction_type": "sample"}, "prediction_type='sample'"),
        ({**EDM_EULER, "sigma_schedule": "linear"}, "sigma_schedule='linear'"),
        ({**EDM_EULER, "sigma_min": 90.0}, "sigma_min=90.0.* is no range of noise"),
        ({**EDM_EULER, "sigma_data": 0.0}, "sigma_data=0.0.* is no range of noise"),
        ({**DPM, "solver_type": "bh2"}, "solver_type='bh2'"),
        ({**DPM, "lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_scheduler_config({**EULER, **fields}, what="some/file.json")
    assert str(caught.value).startswith("some/file.json: ")


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"_class_name": "SASolverScheduler", "tau_func": None, "predictor_order": 2}, "SASolverScheduler"),
        ({"_class_name": "IPNDMScheduler"}, "IPNDMScheduler"),
        ({**DPM, "use_lu_lambdas": True}, "DPMSolverMultistepScheduler with use_lu_lambdas"),
    ],
)
def test_the_noise_is_read_of_classes_that_jaxl_lacks(fields: dict[str, Any], own: str) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config = read_scheduler_config({**fields, **betas, "timestep_spacing": "trailing"})
    assert config.noise == NoiseSchedule(**betas)
    assert scheduler_name(config, "euler") == "euler"
    with pytest.raises(CheckpointError, match=f"'{own}' is not supported; choose one with `scheduler`"):
        scheduler_name(config)


def test_fields_that_are_switched_off_or_empty_are_taken() -> None:
    off = {"thresholding": False, "sigma_min": None, "use_karras_sigmas": None, "lambda_min_clipped": -math.inf}
    assert read_scheduler_config({**EULER, **off}) == SchedulerConfig()


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (EULER, "euler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_a"),
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        (DPM, "dpm++2m"),
        ({**DPM, "algorithm_type": "sde-dpmsolver++"}, "dpm++2m_sde"),
        ({**DPM, "solver_order": 3}, "dpm++3m"),
        ({**DPM, "solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, "dpm++3m_sde"),
        ({"_class_name": "HeunDiscreteScheduler"}, "heun"),
        ({"_class_name": "LMSDiscreteScheduler"}, "lms"),
        ({"_class_name": "KDPM2DiscreteScheduler"}, "dpm2"),
        ({"_class_name": "KDPM2AncestralDiscreteScheduler"}, "dpm2_a"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "dpm++sde"),
        (EDM_EULER, "edm_euler"),
        (FLOW, "euler"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "heun"),
        (EDM_DPM, "edm_dpm++2m"),
        ({**EDM_DPM, "algorithm_type": "sde-dpmsolver++"}, "dpm++2m_sde"),
        ({"_class_name": "DPMSolverSinglestepScheduler"}, "dpm++2s"),
    ],
)
def test_the_class_decides_the_scheduler(raw: dict[str, Any], name: str) -> None:
    assert read_scheduler_config(raw).scheduler == name


def test_absent_fields_have_the_defaults_of_their_class() -> None:
    assert read_scheduler_config({"_class_name": "LCMScheduler"}).noise == SDXL
    assert read_scheduler_config(EULER).noise == NoiseSchedule()
    assert read_scheduler_config({"_class_name": "DDIMScheduler"}).clip_sample is True
    assert read_scheduler_config(EULER).clip_sample is None


def test_another_solver_s_fields_do_not_reach_dpm() -> None:
    for other in ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"}, {**EULER, "solver_type": "heun"}):
        config = config_for_solver(read_scheduler_config({**other, "solver_order": 3}), "dpm++2m")
        assert (config.solver_order, config.solver_type) == (None, None)
    heun = read_scheduler_config({**DPM, "solver_type": "heun"})
    assert config_for_solver(heun, "dpm++2m_sde").solver_type == "heun"
    assert config_for_solver(heun, "euler").solver_type is None


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
def test_one_field_says_which_sigmas_are_wanted(schedule: str) -> None:
    config = read_scheduler_config({**EULER, f"use_{schedule}_sigmas": True})
    assert config == SchedulerConfig(sigma_schedule=schedule)


def test_playground_s_noise() -> None:
    # playgroundai/playground-v2.5-1024px-aesthetic
    raw = {**EDM_DPM, "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0, "sigma_data": 0.5}
    raw |= {"sigma_max": 80.0, "sigma_min": 0.002, "solver_order": 2, "solver_type": "midpoint", "thresholding": False}
    config = read_scheduler_config({**raw, "lower_order_final": True, "final_sigmas_type": "zero"})
    assert config.noise.edm == EDM()
    assert isinstance(hash(config), int)
    cosxl = read_scheduler_config({**EDM_EULER, "sigma_schedule": "exponential", "sigma_data": 1.0})
    assert (cosxl.sigma_schedule, cosxl.noise.edm) == ("exponential", EDM(sigma_data=1.0))


def test_the_embedded_checkpoint() -> None:
    raw = json.loads((resources.files("jaxl") / "models/tiny/scheduler/scheduler_config.json").read_text())
    config = read_scheduler_config(raw)
    assert config.noise == SDXL
    assert isinstance(hash(config), int)
