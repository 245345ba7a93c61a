"""Whole trajectories against diffusers: every scheduler, spacing, prediction and sigma option, at every step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete

from jaxl.diffusion.loop import Slots, advance, init_slots
from jaxl.diffusion.noise import image_key, initial_noise, step_noise
from jaxl.diffusion.schedule import DIFFUSERS_CLASSES, SchedulerConfig
from jaxl.diffusion.tables import Table, build_table
from jaxl.errors import CheckpointError

# torch tensors and NumPy 2, inside diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (4, 4, 2)
STEPS = (1, 2, 5, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Case:
    """A scheduler config as diffusers writes it, and how to run it."""

    scheduler: str
    raw: dict[str, Any]
    steps: int
    eta: float | None = None
    table: Table = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", build_table(SchedulerConfig.from_json(self.raw), self.steps, eta=self.eta))


def scheduler_json(scheduler: str, **options: Any) -> dict[str, Any]:
    """A config of the diffusers class behind `scheduler`, with SDXL's betas unless the options say otherwise."""
    kind = {"dpm++2m": "dpmsolver++", "dpm++2m_sde": "sde-dpmsolver++"}.get(scheduler)
    algorithm = {} if kind is None else {"algorithm_type": kind}
    clip = {"clip_sample": False} if scheduler == "ddim" else {}
    return {"_class_name": DIFFUSERS_CLASSES[scheduler], **SDXL, **algorithm, **clip, **options}


def grid() -> Iterator[Case]:
    """Spacing x prediction x zero terminal SNR x Karras x steps, where the class of diffusers has them."""
    for scheduler in DIFFUSERS_CLASSES:
        predictions = PREDICTIONS[:2] if scheduler == "euler_a" else PREDICTIONS
        sigmas = [{}, {"use_karras_sigmas": True}] if scheduler not in ("ddim", "euler_a") else [{}]
        for spacing, prediction, zero, karras in itertools.product(SPACINGS, predictions, (False, True), sigmas):
            etas: tuple[float | None, ...] = (None,)
            if scheduler == "ddim":
                # where no signal is left the noise cannot be predicted, and at eta 1 diffusers takes the root of a
                # rounding error around 0, which may be NaN
                if prediction == "epsilon" and zero and spacing != "leading":
                    continue
                etas = (0.0, 0.6) if zero else (0.0, 0.6, 1.0)
            raw = scheduler_json(
                scheduler,
                timestep_spacing=spacing,
                prediction_type=prediction,
                rescale_betas_zero_snr=zero,
                steps_offset=1,
                **karras,
            )
            for steps, eta in itertools.product(STEPS, etas):
                yield Case(scheduler, raw, steps, eta)


def corners() -> Iterator[Case]:
    """Options of single schedulers, other betas, and counts of steps beside the round ones."""
    trained = (np.linspace(0.02, 0.15, 100) ** 2).tolist()
    schedules: list[dict[str, Any]] = [
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": trained, "num_train_timesteps": 100},
    ]
    for scheduler, steps in itertools.product(DIFFUSERS_CLASSES, (7, 33)):
        for noise, spacing in itertools.product(schedules, SPACINGS):
            yield Case(scheduler, scheduler_json(scheduler, timestep_spacing=spacing, **noise), steps)
        yield Case(scheduler, scheduler_json(scheduler), steps)
    for scheduler, steps in itertools.product(("euler", "dpm++2m", "dpm++2m_sde"), (1, 9, 17)):
        for karras in (False, True):
            yield Case(
                scheduler, scheduler_json(scheduler, final_sigmas_type="sigma_min", use_karras_sigmas=karras), steps
            )
        cosine = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "timestep_spacing": "trailing"}
        yield Case(scheduler, scheduler_json(scheduler, **cosine), steps)
    solvers: list[dict[str, Any]] = [
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_type": "heun", "use_karras_sigmas": True},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    ]
    for scheduler, solver, steps in itertools.product(("dpm++2m", "dpm++2m_sde"), solvers, (1, 2, 14, 15)):
        yield Case(scheduler, scheduler_json(scheduler, **solver), steps)
    for steps in (3, 30):
        yield Case("ddim", scheduler_json("ddim", set_alpha_to_one=False, steps_offset=1), steps)


CASES = [*grid(), *corners()]
ROWS = max(case.steps for case in CASES)
KEYS = np.stack([image_key(seed) for seed in range(len(CASES))])


def torch_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.5 * x + t / 500 - 1) - 0.1 * x


def jax_network(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(1.5 * x + t[:, None, None, None] / 500 - 1) - 0.1 * x


@functools.cache
def shared_noise() -> tuple[np.ndarray, np.ndarray]:
    """The initial noise [cases, *SHAPE] and each row's [rows, cases, *SHAPE], which both sides use."""
    draw = jax.jit(step_noise, static_argnums=2)
    rows = [np.asarray(draw(KEYS, np.full(len(CASES), row, np.int32), SHAPE)) for row in range(ROWS)]
    return np.array(initial_noise(KEYS, SHAPE)), np.stack(rows)


@functools.cache
def jaxl_trajectories() -> np.ndarray:
    """Latents after each row, [rows, cases, *SHAPE]: every case in one batch, one program for all of it."""
    traces = 0

    def run(slots: Slots, n: jax.Array) -> Slots:
        nonlocal traces
        traces += 1
        return advance(jax_network, slots, n)

    program = jax.jit(run)
    start = init_slots(
        np.stack([case.table.rows[: ROWS + 1] for case in CASES]),
        np.array([case.table.used for case in CASES]),
        np.array([case.table.init_scale for case in CASES]),
        KEYS,
        shared_noise()[0],
    )
    states, slots = [], start
    for _ in range(ROWS):
        slots = program(slots, np.int32(1))
        states.append(np.asarray(slots.latents))
    at_once = program(start, np.int32(ROWS))
    np.testing.assert_array_equal(at_once.latents, slots.latents)
    assert traces == 1
    return np.stack(states)


def diffusers_trajectory(number: int, case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """diffusers' timesteps [steps] and its latents before the first and after each, [steps + 1, *SHAPE].

    The network is told jaxl's timesteps, since a last bit may decide which whole number diffusers' float32 comes to.
    """
    initial, noises = shared_noise()
    scheduler = getattr(diffusers, case.raw["_class_name"]).from_config(case.raw)
    scheduler.set_timesteps(case.steps)
    if case.scheduler != "ddim":
        scheduler.set_begin_index(0)
    x = torch.from_numpy(initial[number]) * scheduler.init_noise_sigma
    states = [x.numpy()]
    for row, t in enumerate(scheduler.timesteps):
        noise = torch.from_numpy(noises[row, number])
        options: dict[str, Any] = {}
        if case.scheduler == "euler_a":
            monkeypatch.setattr(
                scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, noise=noise, **__: noise
            )
        elif case.scheduler == "dpm++2m_sde":
            options = {"variance_noise": noise}
        elif case.scheduler == "ddim":
            options = {"variance_noise": noise, "eta": case.eta or 0.0}
        told = torch.tensor(case.table.timesteps[row])
        prediction = torch_network(scheduler.scale_model_input(x, t), told)
        x = scheduler.step(prediction, t, x, **options).prev_sample
        states.append(x.numpy())
    return scheduler.timesteps.numpy(), np.stack(states)


@pytest.mark.parametrize("scheduler", DIFFUSERS_CLASSES)
def test_every_step_of_every_trajectory_agrees_with_diffusers(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = jaxl_trajectories()
    for number, case in enumerate(CASES):
        if case.scheduler != scheduler:
            continue
        timesteps, theirs = diffusers_trajectory(number, case, monkeypatch)
        cosine_karras = case.raw["beta_schedule"] == "squaredcos_cap_v2" and case.raw.get("use_karras_sigmas")
        # from float32 sigmas diffusers finds 936.998 or 937.002, and cuts off what is behind the point
        np.testing.assert_allclose(
            case.table.timesteps, timesteps, rtol=0, atol=1 if cosine_karras else 2e-3, err_msg=str(case.raw)
        )
        # diffusers adds a step of -4096 to latents of 4096 at zero terminal SNR: one float32 rounding of those remains
        rounding = 2 * np.finfo(np.float32).eps * np.maximum.accumulate(np.abs(theirs).max(axis=(1, 2, 3)))[:-1]
        size = np.abs(theirs[1:]).max(axis=(1, 2, 3))
        error = (np.abs(ours[: case.steps, number] - theirs[1:]).max(axis=(1, 2, 3)) - rounding) / size
        assert error.max() < 2e-4, f"{error.max():.1e} at row {error.argmax()} of {case.steps}, {case.eta}: {case.raw}"


@pytest.mark.parametrize("name", ["PNDMScheduler", "LCMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_the_noise_schedule_of_other_classes_is_theirs(name: str) -> None:
    theirs = getattr(diffusers, name)()
    raw = {key: value for key, value in theirs.config.items() if key != "_use_default_values"}
    for written in (raw, {}):
        config = SchedulerConfig.from_json({**written, "_class_name": name})
        np.testing.assert_allclose(config.noise.alphas_cumprod(), theirs.alphas_cumprod.numpy(), rtol=1e-4)
        with pytest.raises(CheckpointError, match=f"{name}.*choose one with scheduler="):
            build_table(config, 10)
    euler: Any = getattr(diffusers, DIFFUSERS_CLASSES["euler"]).from_config(raw)
    euler.set_timesteps(10)
    chosen = build_table(SchedulerConfig.from_json({**raw, "_class_name": name}), 10, "euler")
    np.testing.assert_allclose(chosen.sigmas, euler.sigmas.numpy(), rtol=1e-4)
    np.testing.assert_allclose(chosen.timesteps, euler.timesteps.numpy(), rtol=1e-4)
