"""Whole trajectories of DEIS, UniPC, DDPM, PNDM, LCM and TCD against diffusers, and the timesteps that are counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from trajectories import SDXL, Batch, Case, follow, make_scheduler

from jaxl.diffusion.diffusers_config import CLASSES, read_scheduler_config
from jaxl.diffusion.schedulers import DIFFUSERS_CLASSES

# torch tensors and NumPy 2, inside diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array_.* (implementation|must accept):DeprecationWarning")

STEPS = (1, 2, 5, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SIGMA_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": (np.linspace(0.02, 0.15, 100) ** 2).tolist(), "num_train_timesteps": 100},
)

MULTISTEP = ("deis", "unipc")
PSEUDO = ("plms", "pndm")
CONSISTENCY = ("lcm", "tcd")
NAMES = (*MULTISTEP, "ddpm", *PSEUDO, *CONSISTENCY, "ddim")


def scheduler_json(scheduler: str, **options: Any) -> dict[str, Any]:
    """A config of the diffusers class behind `scheduler`, with SDXL's betas unless the options say otherwise."""
    own: dict[str, Any] = {"clip_sample": False} if scheduler in ("ddim", "ddpm") else {}
    if scheduler in PSEUDO:
        own["skip_prk_steps"] = scheduler == "plms"
    return {"_class_name": DIFFUSERS_CLASSES[scheduler], **SDXL, **own, **options}


def multistep() -> Iterator[Case]:
    """DEIS and UniPC: spacing x prediction x steps, then orders, sigma schedules and what else each has."""
    for scheduler, spacing, prediction, steps in itertools.product(MULTISTEP, SPACINGS, PREDICTIONS, STEPS):
        options = {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": 1}
        yield Case(scheduler_json(scheduler, **options), steps)
    for scheduler, order, lowers, steps in itertools.product(MULTISTEP, (1, 2, 3), (True, False), (3, 14, 15, 40)):
        # to no noise at all diffusers' UniPC of higher orders gives NaN
        final = {"final_sigmas_type": "sigma_min"} if scheduler == "unipc" and not lowers else {}
        yield Case(scheduler_json(scheduler, solver_order=order, lower_order_final=lowers, **final), steps)
    for scheduler, spacing, flag, steps in itertools.product(MULTISTEP, SPACINGS, SIGMA_FLAGS, (1, 2, 9, 20)):
        # diffusers' DEIS stays where it is in a single step then
        if (scheduler, steps) != ("deis", 1):
            yield Case(scheduler_json(scheduler, timestep_spacing=spacing, solver_order=3, **{flag: True}), steps)
    for scheduler, noise, flag, steps in itertools.product(MULTISTEP, SCHEDULES, (None, SIGMA_FLAGS[0]), (7, 33)):
        yield Case(scheduler_json(scheduler, **noise, **({flag: True} if flag else {})), steps)
    for spacing, prediction, steps in itertools.product(SPACINGS, PREDICTIONS[1:], STEPS):
        zero = {"rescale_betas_zero_snr": True, "prediction_type": prediction, "timestep_spacing": spacing}
        yield Case(scheduler_json("unipc", **zero), steps)
    solvers: list[dict[str, Any]] = [
        {"solver_type": "bh1"},
        {"solver_type": "midpoint"},
        {"predict_x0": False},
        {"predict_x0": False, "solver_type": "bh1"},
        {"disable_corrector": [0, 1, 5]},
    ]
    for solver, order, prediction, steps in itertools.product(solvers, (1, 2, 3), PREDICTIONS, (5, 20)):
        # diffusers' last step to no noise gives NaN with these
        nan = "predict_x0" in solver or solver.get("solver_type") == "bh1"
        final = {"final_sigmas_type": "sigma_min"} if nan else {}
        yield Case(scheduler_json("unipc", solver_order=order, prediction_type=prediction, **solver, **final), steps)
    for flag, steps in itertools.product(({}, *({flag: True} for flag in SIGMA_FLAGS)), (1, 9, 17)):
        # and its single step stays where it is
        if not flag or steps > 1:
            yield Case(scheduler_json("unipc", final_sigmas_type="sigma_min", **flag), steps)


def counting() -> Iterator[Case]:
    """DDPM, PNDM, LCM and TCD: spacing x prediction x zero terminal SNR x steps, where they have them."""
    for spacing, prediction, zero, steps in itertools.product(SPACINGS, PREDICTIONS, (False, True), STEPS):
        # where no signal is left the noise cannot be predicted
        if not (zero and prediction == "epsilon"):
            options = {"timestep_spacing": spacing, "prediction_type": prediction, "rescale_betas_zero_snr": zero}
            yield Case(scheduler_json("ddpm", steps_offset=1, **options), steps)
    for variance, steps in itertools.product(("fixed_small_log", "fixed_large"), (1, 7, 30)):
        yield Case(scheduler_json("ddpm", variance_type=variance), steps)
    for scheduler, spacing, one, offset in itertools.product(PSEUDO, SPACINGS, (False, True), (0, 1)):
        for prediction, steps in itertools.product(PREDICTIONS[:2], (*STEPS, 4, 7)):
            # diffusers' warm-up takes four steps
            if scheduler == "plms" or steps >= 4:
                options = {"timestep_spacing": spacing, "prediction_type": prediction, "set_alpha_to_one": one}
                yield Case(scheduler_json(scheduler, steps_offset=offset, **options), steps)
    for scheduler, spacing in itertools.product(PSEUDO, SPACINGS):
        yield Case(scheduler_json(scheduler, timestep_spacing=spacing), 300)
    for scheduler, prediction, zero, steps in itertools.product(CONSISTENCY, PREDICTIONS, (False, True), (1, 2, 4, 8)):
        if zero and prediction == "epsilon":
            continue
        raw = scheduler_json(scheduler, prediction_type=prediction, rescale_betas_zero_snr=zero)
        for eta in (0.0, 0.3, 0.7, 1.0) if scheduler == "tcd" else (None,):
            yield Case(raw, steps, {} if eta is None else {"eta": eta})
    for scheduler, steps in itertools.product(CONSISTENCY, (3, 30)):
        yield Case(scheduler_json(scheduler, original_inference_steps=30, timestep_scaling=0.01), steps)
        yield Case(scheduler_json(scheduler, original_inference_steps=70), steps)
    for scheduler, noise in itertools.product(("ddpm", *PSEUDO, *CONSISTENCY), SCHEDULES):
        yield Case(scheduler_json(scheduler, **noise), 7)


def starts() -> Iterator[Case]:
    """Starts in the middle, as from a picture, and timesteps of one's own."""
    for scheduler, (steps, skip) in itertools.product(NAMES, ((2, 1), (10, 3), (10, 9), (25, 14))):
        # diffusers' warm-up takes four steps
        if scheduler != "pndm" or steps - skip >= 4:
            yield Case(scheduler_json(scheduler, timestep_spacing="leading", steps_offset=1), steps, {"skip": skip})
            yield Case(scheduler_json(scheduler, timestep_spacing="trailing"), steps, {"skip": skip})
    for solver, skip in itertools.product(({}, {"predict_x0": False}, {"disable_corrector": [6, 8]}), (1, 5, 9)):
        karras = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
        yield Case(scheduler_json("unipc", solver_order=3, **solver, **karras), 20, {"skip": skip})
    for scheduler, timesteps in itertools.product(("ddpm", *CONSISTENCY), ([999, 700, 3], [500], [999, 759, 499, 259])):
        for skip in {0, len(timesteps) // 2}:
            yield Case(scheduler_json(scheduler), None, {"timesteps": timesteps, "skip": skip})


CASES = [*multistep(), *counting(), *starts()]
# apart, as a batch goes as far as its longest
BATCHES = [Batch([case for case in CASES if (case.table.used > 100) == long]) for long in (False, True)]


def cases_of(scheduler: str) -> list[tuple[Batch, int, Case]]:
    return [
        (batch, number, case)
        for batch in BATCHES
        for number, case in enumerate(batch.cases)
        if read_scheduler_config(case.raw).scheduler == scheduler
    ]


def reference(case: Case) -> Any:
    """diffusers' scheduler of the case; its PNDM is given the table's timesteps for a start in the middle."""
    theirs = make_scheduler(case)
    if case.raw["_class_name"] == "DEISMultistepScheduler":
        # float32 has too few digits for the differences that its third-order weights are
        theirs.sigmas = theirs.sigmas.double()
    if "skip" in case.options and case.raw["_class_name"] == "PNDMScheduler":
        # it would leave a level out, or take the start of its steps from the whole schedule
        theirs.timesteps = torch.from_numpy(case.table.timesteps.astype(np.int64))
        theirs.prk_timesteps = theirs.timesteps.numpy()[: len(theirs.prk_timesteps)]
    return theirs


@pytest.mark.parametrize("kind", CLASSES)
def test_the_classes_are_those_of_diffusers(kind: str) -> None:
    assert hasattr(diffusers, kind)


@pytest.mark.parametrize("scheduler", NAMES)
def test_every_step_of_every_trajectory_agrees_with_diffusers(scheduler: str) -> None:
    cases = cases_of(scheduler)
    assert len(cases) > 5
    for batch, number, case in cases:
        timesteps, states = follow(reference(case), case, batch.initial[number], batch.noises[:, number])
        np.testing.assert_array_equal(case.table.timesteps, timesteps, err_msg=str(case))
        batch.assert_agrees(number, states)


@pytest.mark.parametrize("scheduler", NAMES)
def test_a_picture_is_noised_as_diffusers_noises_it(scheduler: str) -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    for *_, case in cases_of(scheduler):
        if "skip" not in case.options:
            continue
        theirs = reference(case)
        begin = theirs.timesteps.size(0) - case.table.used
        # at the start, and at the start of each further row, where inpainting puts its picture back
        for row in range(case.table.used):
            if hasattr(theirs, "set_begin_index"):
                theirs.set_begin_index(begin + row)
            time = theirs.timesteps[begin + row : begin + row + 1]
            np.testing.assert_allclose(theirs.add_noise(one, zero, time).numpy(), case.table.alphas[row], rtol=5e-5)
            np.testing.assert_allclose(theirs.add_noise(zero, one, time).numpy(), case.table.sigmas[row], rtol=5e-5)
