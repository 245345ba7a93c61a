"""Whole trajectories of jaxl's tables, every case in one batch and one program, to be held against a reference."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Any
from unittest.mock import patch

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.loop import Row, Slots, advance, init_slots
from jaxl.diffusion.noise import image_key, initial_noise, step_noise
from jaxl.diffusion.tables import Table, build_table

with patch.dict(sys.modules, {"torchsde": ModuleType("torchsde")}):  # it draws noise, which is given here
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

SHAPE = (4, 4, 2)
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Case:
    """A scheduler config as diffusers writes it, the number of steps, and further arguments of `build_table`.

    With an option `skip` so many of the first steps are left out.
    """

    raw: dict[str, Any]
    steps: int | None
    options: dict[str, Any] = field(default_factory=dict)
    table: Table = field(init=False)

    def __post_init__(self) -> None:
        options = dict(self.options)
        skip, config = options.pop("skip", 0), read_scheduler_config(self.raw)
        table = build_table(config, self.steps, **options)
        if skip:
            table = build_table(config, self.steps, places=range(skip, table.steps[-1] + 1), **options)
        object.__setattr__(self, "table", table)


def torch_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.5 * x + t / 500 - 1) - 0.1 * x


def jax_network(x: jax.Array, row: Row) -> jax.Array:
    return jnp.tanh(1.5 * x + row["t"][:, None, None, None] / 500 - 1) - 0.1 * x


class Batch:
    """Cases side by side. `initial` [cases, *SHAPE] and `noises` [rows, cases, *SHAPE] are what the images draw."""

    def __init__(self, cases: list[Case]):
        self.cases = cases
        self.rows = max(case.table.used for case in cases)
        self.keys = np.stack([image_key(seed) for seed in range(len(cases))])

    @cached_property
    def initial(self) -> np.ndarray:
        return np.array(initial_noise(self.keys, SHAPE))

    @cached_property
    def noises(self) -> np.ndarray:
        draw = jax.jit(step_noise, static_argnums=2)
        each = [draw(self.keys, np.full(len(self.cases), row, np.int32), SHAPE) for row in range(self.rows)]
        return np.stack([np.asarray(noise) for noise in each])

    @cached_property
    def trajectories(self) -> np.ndarray:
        """Latents after each row, [rows, cases, *SHAPE], from one program for all of it."""
        traces = 0

        def run(slots: Slots, n: jax.Array) -> Slots:
            nonlocal traces
            traces += 1
            return advance(lambda x, row, _: (*[jax_network(x, row)] * 2, None), slots, n)

        program = jax.jit(run)
        start = init_slots(
            np.stack([case.table.rows[: self.rows + 1] for case in self.cases]),
            np.array([case.table.used for case in self.cases]),
            self.keys,
            self.initial,
            np.array([case.table.init_scale for case in self.cases]),
        )
        states, slots = [], start
        for _ in range(self.rows):
            slots = program(slots, np.int32(1))
            states.append(np.asarray(slots.latents))
        at_once = program(start, np.int32(self.rows))
        np.testing.assert_array_equal(at_once.latents, slots.latents)
        assert traces == 1
        return np.stack(states)

    def assert_agrees(self, number: int, theirs: np.ndarray) -> None:
        """Latents of case `number` after each row are within 2e-4, relative, of `theirs` [rows + 1, *SHAPE].

        `theirs` begins with the latents before the first row.
        """
        case = self.cases[number]
        # diffusers adds a step of -4096 to latents of 4096 at zero terminal SNR: one float32 rounding of those remains
        rounding = 2 * np.finfo(np.float32).eps * np.maximum.accumulate(np.abs(theirs).max(axis=(1, 2, 3)))[:-1]
        size = np.abs(theirs[1:]).max(axis=(1, 2, 3))
        ours = self.trajectories[: case.table.used, number]
        error = (np.abs(ours - theirs[1:]).max(axis=(1, 2, 3)) - rounding) / size
        assert error.max() < 2e-4, f"{error.max():.1e} at row {error.argmax()} of {case}"


@cache
def _scheduler(raw: str) -> Any:
    config = json.loads(raw)
    name = config["_class_name"]
    kind = DPMSolverSDEScheduler if name == "DPMSolverSDEScheduler" else getattr(diffusers, name)
    # some classes lay out a thousand steps first, which takes them a tenth of a second
    with patch.object(kind, "set_timesteps", lambda self, *_: setattr(self, "sigmas", torch.zeros(1))):
        return kind.from_config(config)


def make_scheduler(case: Case) -> Any:
    """diffusers' scheduler of the case, its timesteps set."""
    scheduler = _scheduler(json.dumps(case.raw))
    custom = {key: case.options[key] for key in ("timesteps", "sigmas") if key in case.options}
    scheduler.set_timesteps(*([] if case.steps is None else [case.steps]), **custom)
    return scheduler


def follow(scheduler: Any, case: Case, initial: np.ndarray, noises: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """diffusers' timesteps [rows] and its latents before the first and after each, [rows + 1, *SHAPE].

    They start as the table's do, from `initial` [*SHAPE], and each row draws its own of `noises` [rows, *SHAPE]. The
    network is told jaxl's timesteps, since a last bit may decide which whole number diffusers' float32 comes to.
    """
    skip = case.options.get("skip", 0)
    begin = scheduler.timesteps.size(0) - case.table.used
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    start = scheduler.init_noise_sigma if skip == 0 else case.table.init_scale
    x = torch.from_numpy(initial) * start
    states = [x.numpy()]
    eta = {"eta": case.options["eta"]} if "eta" in case.options else {}
    timesteps = scheduler.timesteps[begin:]
    has_path = case.raw["_class_name"] == "DPMSolverSDEScheduler"
    scheduler.noise_sampler = brownian = _BrownianPath()
    for row, t in enumerate(timesteps):
        noise = torch.from_numpy(noises[row])
        if has_path:
            brownian.noise = noise
            draws = nullcontext()
        else:
            module = sys.modules[type(scheduler).__module__]
            draws = patch.object(module, "randn_tensor", lambda *_, noise=noise, **__: noise, create=True)
        told = torch.tensor(case.table.timesteps[row])
        with draws:
            x = scheduler.step(torch_network(scheduler.scale_model_input(x, t), told), t, x, **eta).prev_sample
        states.append(x.numpy())
    return timesteps.numpy(), np.stack(states)


class _BrownianPath:
    """Increments over sigma, of unit variance: from a level to the middle, then from there past it to the next."""

    def __init__(self) -> None:
        self.noise = torch.zeros(())
        self.first: tuple[Any, torch.Tensor] | None = None

    def __call__(self, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = there, self.noise
            return self.noise
        (middle, noise), self.first = self.first, None
        shared = (here - middle) / (here - there)
        return shared.sqrt() * noise + (1 - shared).sqrt() * self.noise
