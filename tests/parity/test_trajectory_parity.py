"""Whole trajectories against diffusers: every scheduler, spacing, prediction and sigma option, at every step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from trajectories import SDXL, Batch, Case, follow, make_scheduler

from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.schedulers import DIFFUSERS_CLASSES
from jaxl.diffusion.tables import build_table
from jaxl.errors import CheckpointError

# torch tensors and NumPy 2, inside diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array_.* (implementation|must accept):DeprecationWarning")

STEPS = (1, 2, 5, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SIGMA_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

DPM = ("dpm++2m", "dpm++2m_sde", "dpm++3m", "dpm++3m_sde")
TWO_ROWS = ("dpm++sde", "dpm2", "dpm2_a", "heun")
EDM = ("edm_dpm++2m", "edm_euler")
NAMES = ("ddim", *DPM, *TWO_ROWS, *EDM, "euler", "euler_a", "lms")


def scheduler_json(scheduler: str, **options: Any) -> dict[str, Any]:
    """A config of the diffusers class behind `scheduler`, with SDXL's betas unless the options say otherwise."""
    own: dict[str, Any] = {} if scheduler in EDM else dict(SDXL)
    if scheduler in DPM:
        own["algorithm_type"] = "sde-dpmsolver++" if scheduler.endswith("sde") else "dpmsolver++"
        own["solver_order"] = 3 if "3m" in scheduler else 2
    if scheduler == "ddim":
        own["clip_sample"] = False
    return {"_class_name": DIFFUSERS_CLASSES[scheduler], **own, **options}


def predictions(scheduler: str) -> tuple[str, ...]:
    """Those that the class has: only Heun's of the two-row classes has `sample`."""
    return PREDICTIONS[:2] if scheduler in ("dpm++sde", "dpm2", "dpm2_a", "euler_a", *EDM) else PREDICTIONS


def grid() -> Iterator[Case]:
    """Spacing x prediction x zero terminal SNR x steps, and spacing x sigma schedule, where diffusers has them."""
    for scheduler in sorted(set(NAMES) - set(EDM)):
        zeros = (False,) if scheduler in (*TWO_ROWS, "lms") else (False, True)
        for spacing, prediction, zero in itertools.product(SPACINGS, predictions(scheduler), zeros):
            etas: tuple[float | None, ...] = (None,)
            if scheduler == "ddim":
                # where no signal is left the noise cannot be predicted, and at eta 1 diffusers takes the root of a
                # rounding error around 0, which may be NaN
                if prediction == "epsilon" and zero and spacing != "leading":
                    continue
                etas = (0.0, 0.6) if zero else (0.0, 1.0)
            extra = {"rescale_betas_zero_snr": True} if zero else {}
            options = {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": 1, **extra}
            for steps, eta in itertools.product(STEPS, etas):
                # float32 has no digit left for the level that dpm2_a goes down to in two steps from 999 to 0
                if (scheduler, spacing, steps) != ("dpm2_a", "linspace", 2):
                    yield Case(scheduler_json(scheduler, **options), steps, {} if eta is None else {"eta": eta})
        if scheduler in ("ddim", "euler_a"):
            continue
        for spacing, flag, steps in itertools.product(SPACINGS, SIGMA_FLAGS, (1, 2, 20)):
            yield Case(scheduler_json(scheduler, timestep_spacing=spacing, steps_offset=1, **{flag: True}), steps)
            if scheduler in (*DPM, "euler"):
                zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", flag: True}
                yield Case(scheduler_json(scheduler, timestep_spacing=spacing, **zero), steps)


def edm() -> Iterator[Case]:
    """Models with EDM noise: Playground v2.5's, the paper's and CosXL's."""
    for scheduler, prediction, final in itertools.product(EDM, predictions("edm_euler"), ("zero", "sigma_min")):
        options = {"prediction_type": prediction, "final_sigmas_type": final}
        # for one step that ends at the lowest level, or has exponential sigmas, diffusers' start is not the highest
        for steps in STEPS if final == "zero" else STEPS[1:]:
            yield Case(scheduler_json(scheduler, **options), steps)
        cosxl = {"sigma_max": 120.0, "sigma_data": 1.0, "sigma_schedule": "exponential", "rho": 5.0}
        for steps in STEPS[1:]:
            yield Case(scheduler_json(scheduler, **options, **cosxl), steps)
    for solver, steps in itertools.product(({"solver_type": "heun"}, {"solver_order": 1}, {"solver_order": 3}), STEPS):
        yield Case(scheduler_json("edm_dpm++2m", **solver), steps)
    for steps in STEPS:
        yield Case(scheduler_json("edm_dpm++2m", algorithm_type="sde-dpmsolver++"), steps)


def corners() -> Iterator[Case]:
    """Options of single schedulers, other betas, and counts of steps beside the round ones."""
    trained = (np.linspace(0.02, 0.15, 100) ** 2).tolist()
    schedules: list[dict[str, Any]] = [
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": trained, "num_train_timesteps": 100},
    ]
    for scheduler, steps in itertools.product(sorted(set(NAMES) - set(EDM)), (7, 33)):
        for noise, spacing in itertools.product(schedules, SPACINGS if steps == 7 else SPACINGS[2:]):
            # nor has float32 a digit left for it from a sigma of 20000
            if scheduler != "dpm2_a" or "squaredcos_cap_v2" not in noise.values():
                yield Case(scheduler_json(scheduler, timestep_spacing=spacing, **noise), steps)
        yield Case(scheduler_json(scheduler), steps)
    for scheduler, steps in itertools.product(("euler", *DPM), (1, 9, 17)):
        # the lowest level is visited twice then, where diffusers' third order gives NaN
        for flag in ({}, *({flag: True} for flag in SIGMA_FLAGS)) if "3m" not in scheduler else ({},):
            yield Case(scheduler_json(scheduler, final_sigmas_type="sigma_min", **flag), steps)
        cosine = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "timestep_spacing": "trailing"}
        yield Case(scheduler_json(scheduler, **cosine), steps)
    solvers: list[dict[str, Any]] = [
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_type": "heun", "use_karras_sigmas": True},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    ]
    for scheduler, solver, steps in itertools.product(DPM, solvers, (1, 2, 3, 14, 15)):
        yield Case(scheduler_json(scheduler, **solver), steps)
    for steps in (3, 30):
        yield Case(scheduler_json("ddim", set_alpha_to_one=False, steps_offset=1), steps)


def starts() -> Iterator[Case]:
    """Starts in the middle, as from a picture."""
    for scheduler, (steps, skip) in itertools.product(NAMES, ((2, 1), (10, 3), (10, 9), (25, 14))):
        for flag in ({},) if scheduler in ("ddim", "euler_a", *EDM) else ({}, {"use_karras_sigmas": True}):
            spacing = {} if scheduler in EDM else {"timestep_spacing": "leading", "steps_offset": 1}
            yield Case(scheduler_json(scheduler, **spacing, **flag), steps, {"skip": skip})


def custom() -> Iterator[Case]:
    """Timesteps and sigmas of one's own, Align Your Steps among them."""
    lists = [AysSchedules["StableDiffusionXLTimesteps"], [999, 700, 3], [500], list(range(999, 0, -50))]
    for scheduler, timesteps in itertools.product((*DPM, "euler", "heun"), lists):
        yield Case(scheduler_json(scheduler), None, {"timesteps": timesteps})
        yield Case(scheduler_json(scheduler), None, {"timesteps": timesteps, "skip": len(timesteps) // 2})
    for sigmas in (AysSchedules["StableDiffusionXLSigmas"], [10.0, 3.0, 1.0, 0.5], [7, 0]):
        yield Case(scheduler_json("euler"), None, {"sigmas": sigmas})


def singlestep() -> Iterator[Case]:
    """DPM-Solver++ in steps that begin anew; the class has one spacing."""
    extras: list[dict[str, Any]] = [{}, {"use_karras_sigmas": True}, {"lower_order_final": True}]
    extras.append({"use_beta_sigmas": True, "prediction_type": "v_prediction"})
    for order, kind, steps in itertools.product((1, 2, 3), ("midpoint", "heun"), (1, 2, 3, 5, 6, 20)):
        solver = {"solver_order": order, "solver_type": kind}
        for extra in extras:
            yield Case(scheduler_json("dpm++2s", **solver, **extra), steps)
        # for other numbers diffusers sets lower_order_final, for good
        if steps % order == 0:
            yield Case(scheduler_json("dpm++2s", **solver, final_sigmas_type="sigma_min"), steps)


def inverse() -> Iterator[Case]:
    """From a picture up to noise."""
    for spacing, prediction, steps in itertools.product(SPACINGS[::2], PREDICTIONS[:2], STEPS):
        options = {"timestep_spacing": spacing, "prediction_type": prediction, "clip_sample": False}
        for one in (True, False):
            yield Case(scheduler_json("ddim_inverse", set_alpha_to_one=one, **options), steps)


@pytest.fixture(scope="module", autouse=True)
def _coefficients_are_integrated_once() -> Iterator[None]:
    """diffusers' LMS integrates in Python; what is predicted changes no coefficient."""
    kind = diffusers.LMSDiscreteScheduler
    theirs, known = kind.get_lms_coefficient, {}

    def coefficient(self: Any, order: int, t: int, current_order: int) -> Any:
        key = (self.sigmas.numpy().tobytes(), order, t, current_order)
        if key not in known:
            known[key] = theirs(self, order, t, current_order)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "get_lms_coefficient", coefficient)
        yield


BATCH = Batch([*grid(), *edm(), *corners(), *starts(), *custom(), *singlestep(), *inverse()])


def correct_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds alpha * D2 to the third-order SDE step of diffusers, which takes D2 / 2 away where it must add it."""
    kind: Any = getattr(diffusers, DIFFUSERS_CLASSES["dpm++3m_sde"])
    theirs = kind.multistep_dpm_solver_third_order_update

    def update(self: Any, outputs: list[torch.Tensor], *, sample: torch.Tensor, noise: torch.Tensor | None) -> Any:
        step = self.step_index
        alphas = 1 / torch.sqrt(self.sigmas**2 + 1)
        h, h_0, h_1 = (torch.log(self.sigmas[i] / self.sigmas[i + 1]) for i in (step, step - 1, step - 2))
        r0, r1 = h_0 / h, h_1 / h
        bend = ((outputs[-1] - outputs[-2]) / r0 - (outputs[-2] - outputs[-3]) / r1) / (r0 + r1)
        result = theirs(self, outputs, sample=sample, noise=noise)
        return result + alphas[step + 1] * bend if self.config.algorithm_type == "sde-dpmsolver++" else result

    monkeypatch.setattr(kind, "multistep_dpm_solver_third_order_update", update)


@pytest.mark.parametrize("scheduler", [*NAMES, "dpm++2s", "ddim_inverse"])
def test_every_step_of_every_trajectory_agrees_with_diffusers(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    correct_curvature(monkeypatch)
    for number, case in enumerate(BATCH.cases):
        if case.raw["_class_name"] != DIFFUSERS_CLASSES[scheduler] or (
            scheduler in DPM and read_scheduler_config(case.raw).scheduler != scheduler
        ):
            continue
        theirs = make_scheduler(case)
        skip = case.options.get("skip", 0)
        if scheduler == "lms" and skip:
            # diffusers would take weights of order 4 for the one slope it has
            theirs.sigmas, theirs.timesteps = theirs.sigmas[skip:], theirs.timesteps[skip:]
        timesteps, states = follow(theirs, case, BATCH.initial[number], BATCH.noises[:, number])
        whole = scheduler in ("ddim", "ddim_inverse", "dpm++2s", *DPM)
        np.testing.assert_allclose(
            case.table.timesteps, timesteps, rtol=0, atol=0 if whole else 0.02, err_msg=str(case)
        )
        BATCH.assert_agrees(number, states)


@pytest.mark.parametrize("scheduler", NAMES)
def test_a_picture_is_noised_as_diffusers_noises_it(scheduler: str) -> None:
    for case in BATCH.cases:
        if case.raw["_class_name"] != DIFFUSERS_CLASSES[scheduler] or "skip" not in case.options:
            continue
        theirs = make_scheduler(case)
        begin = theirs.timesteps.size(0) - case.table.used
        if scheduler != "ddim":
            theirs.set_begin_index(begin)
        one, zero = torch.ones(1), torch.zeros(1)
        start = theirs.timesteps[begin : begin + 1]
        np.testing.assert_allclose(theirs.add_noise(one, zero, start).numpy(), case.table.alphas[:1], rtol=5e-5)
        np.testing.assert_allclose(theirs.add_noise(zero, one, start).numpy(), case.table.sigmas[:1], rtol=5e-5)


@pytest.mark.parametrize("name", ["DPMSolverSinglestepScheduler", "LCMScheduler", "HeunDiscreteScheduler"])
def test_the_noise_schedule_of_other_classes_is_theirs(name: str) -> None:
    theirs = getattr(diffusers, name)()
    raw = {key: value for key, value in theirs.config.items() if key != "_use_default_values"}
    for written in (raw, {}):
        config = read_scheduler_config({**written, "_class_name": name})
        np.testing.assert_allclose(config.noise.alphas_cumprod(), theirs.alphas_cumprod.numpy(), rtol=1e-4)
    euler: Any = getattr(diffusers, DIFFUSERS_CLASSES["euler"]).from_config(raw)
    euler.set_timesteps(10)
    chosen = build_table(read_scheduler_config({**raw, "_class_name": name}), 10, "euler")
    np.testing.assert_allclose(chosen.sigmas, euler.sigmas.numpy(), rtol=1e-4)
    np.testing.assert_allclose(chosen.timesteps, euler.timesteps.numpy(), rtol=1e-4)


def test_a_checkpoint_s_own_scheduler_that_jaxl_lacks_is_named() -> None:
    config = read_scheduler_config({"_class_name": "SASolverScheduler", **SDXL})
    with pytest.raises(CheckpointError, match=r"SASolverScheduler.*choose one with `scheduler`"):
        build_table(config, 10)
