"""Trajectories against k-diffusion's samplers, written down here from its formulas in terms of sigma and log sigma.

https://github.com/crowsonkb/k-diffusion, `k_diffusion/sampling.py`: what diffusers lacks or does otherwise, which is
churn, `eta`, DPM++ 2S ancestral, DPM++ 3M SDE, and the ancestral samplers with any sigmas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from trajectories import SDXL, Batch, Case

from jaxl.diffusion.schedule import NoiseSchedule
from jaxl.diffusion.spacing import karras_sigmas

Denoise = Callable[[np.ndarray, float], np.ndarray]
Noise = Callable[[], np.ndarray]

TRAINED = np.log(NoiseSchedule(**SDXL).sigmas())


def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
    """The estimate of the network of `trajectories`, which predicts noise."""
    t = np.interp(np.log(sigma), TRAINED, np.arange(1000))
    seen = x / np.sqrt(sigma**2 + 1)
    return x - sigma * (np.tanh(1.5 * seen + t / 500 - 1) - 0.1 * seen)


def slope(x: np.ndarray, sigma: float) -> np.ndarray:
    return (x - denoise(x, sigma)) / sigma


def split(here: float, there: float, eta: float) -> tuple[float, float]:
    """The level to go down to, and the noise back up."""
    up = min(there, eta * np.sqrt(there**2 * (here**2 - there**2) / here**2))
    return np.sqrt(there**2 - up**2), up


def exponential(x: np.ndarray, d: np.ndarray, here: float, there: float) -> np.ndarray:
    """First order in log sigma."""
    return there / here * x + (1 - there / here) * d


def singlestep(kind: str, x: np.ndarray, here: float, there: float, eta: float, noise: Noise) -> np.ndarray:
    """One step of the samplers that keep nothing."""
    if kind == "euler":
        return x + (there - here) * slope(x, here)
    if kind == "heun":
        first = slope(x, here)
        end = x + (there - here) * first
        return end if there == 0 else x + (there - here) * (first + slope(end, there)) / 2
    if kind == "dpm++sde":
        if there == 0:
            return denoise(x, here)
        middle = np.sqrt(here * there)
        down, up = split(here, middle, eta)
        n1 = noise()
        second = denoise(exponential(x, denoise(x, here), here, down) + up * n1, middle)
        down, up = split(here, there, eta)
        # a Brownian path over sigma, at the middle and at the end
        path = np.sqrt(here - middle) * n1 + np.sqrt(middle - there) * noise()
        return exponential(x, second, here, down) + up * path / np.sqrt(here - there)
    down, up = split(here, there, eta) if kind != "dpm2" else (there, 0.0)
    first = slope(x, here)
    if down == 0 or kind == "euler_a":
        x = x + (down - here) * first
        drawn = noise()
        return x + up * drawn
    middle = np.exp((np.log(here) + np.log(down)) / 2)
    halfway = x + (middle - here) * first
    noise()
    if kind == "dpm++2s_a":
        x = exponential(x, denoise(halfway, middle), here, down)
    else:
        x = x + (down - here) * slope(halfway, middle)
    return x + up * noise()


def multistep(x: np.ndarray, sigmas: np.ndarray, order: int, eta: float, kind: str, noise: Noise) -> Iterator[Any]:
    """DPM++ 2M, 2M SDE and 3M SDE: with the formula `kind` for order 2."""
    past: list[np.ndarray] = []
    steps: list[float] = []
    for here, there in itertools.pairwise(sigmas):
        d = denoise(x, here)
        if there == 0:
            x = d
        else:
            h = np.log(here / there)
            long = h * (1 + eta)
            x = np.exp(-long) * x - np.expm1(-long) * d
            phi_2 = np.expm1(-long) / long + 1
            if len(past) >= 2 and order == 3:
                r0, r1 = steps[-1] / h, steps[-2] / h
                d1_0, d1_1 = (d - past[-1]) / r0, (past[-1] - past[-2]) / r1
                d2 = (d1_0 - d1_1) / (r0 + r1)
                x = x + phi_2 * (d1_0 + d2 * r0) - (phi_2 / long - 0.5) * d2
            elif past:
                change = (d - past[-1]) * h / steps[-1]
                x = x + (phi_2 if kind == "heun" else -np.expm1(-long) / 2) * change
            x = x + there * np.sqrt(-np.expm1(-2 * h * eta)) * noise()
            steps.append(h)
        past.append(d)
        yield x


def k_diffusion(case: Case, x: np.ndarray, noises: np.ndarray) -> Iterator[np.ndarray]:
    """Latents after each step, from `x` at the first level (with its churn)."""
    kind = case.options["scheduler"]
    sigmas, eta = case.options["sigmas"], case.options.get("eta", 1.0)
    draws = iter(noises.astype(np.float64))
    if kind.startswith(("dpm++2m", "dpm++3m")):
        noisy = kind.endswith("sde")
        order = int(kind[5])
        second = case.raw["solver_type"] if order == 2 else "heun"
        yield from multistep(x, sigmas, order, eta if noisy else 0.0, second, lambda: next(draws))
        return
    churn = min(case.options.get("s_churn", 0.0) / (len(sigmas) - 1), np.sqrt(2) - 1)
    low, high = case.options.get("s_tmin", 0.0), case.options.get("s_tmax", np.inf)
    raised = [sigma * (1 + churn * (low <= sigma <= high)) for sigma in sigmas[:-1]] + [sigmas[-1]]
    for i, there in enumerate(sigmas[1:]):
        rows = iter(noises[case.table.steps == i].astype(np.float64))
        x = singlestep(kind, x, raised[i], there, eta, lambda rows=rows: next(rows))
        if there > 0:  # what churn adds before the next step is drawn by the last row of this one
            last = noises[np.flatnonzero(case.table.steps == i)[-1]].astype(np.float64)
            x = x + case.options.get("s_noise", 1.0) * np.sqrt(raised[i + 1] ** 2 - there**2) * last
        yield x


def cases() -> Iterator[Case]:
    dpm = {"_class_name": "DPMSolverMultistepScheduler", **SDXL}
    long, short = (np.append(karras_sigmas(14.6, 0.03, steps), 0.0) for steps in (20, 6))
    for sigmas in (long, short, long[:-3]):
        for kind, eta in itertools.product(("euler_a", "dpm2_a", "dpm++2s_a", "dpm++sde"), (1.0, 0.4, 0.0)):
            yield Case(dpm, None, {"scheduler": kind, "sigmas": sigmas, "eta": eta})
        for second in ("midpoint", "heun"):
            raw = {**dpm, "solver_type": second}
            yield Case(raw, None, {"scheduler": "dpm++2m", "sigmas": sigmas})
            for eta in (1.0, 0.4, 0.0):
                yield Case(raw, None, {"scheduler": "dpm++2m_sde", "sigmas": sigmas, "eta": eta})
        for eta in (1.0, 0.4, 0.0):
            yield Case(dpm, None, {"scheduler": "dpm++3m_sde", "sigmas": sigmas, "eta": eta})
        for kind, churn in itertools.product(("euler", "heun", "dpm2"), (0.0, 3.0, 1000.0)):
            yield Case(dpm, None, {"scheduler": kind, "sigmas": sigmas, "s_churn": churn, "s_noise": 1.003})
            limits = {"s_tmin": 0.5, "s_tmax": 5.0}
            yield Case(dpm, None, {"scheduler": kind, "sigmas": sigmas, "s_churn": churn, **limits})


BATCH = Batch([*cases()])


@pytest.mark.parametrize("scheduler", sorted({case.options["scheduler"] for case in BATCH.cases}))
def test_every_step_agrees_with_k_diffusion(scheduler: str) -> None:
    for number, case in enumerate(BATCH.cases):
        if case.options["scheduler"] != scheduler:
            continue
        table = case.table
        start = BATCH.initial[number].astype(np.float64) * table.init_scale / table.alphas[0]
        theirs = np.stack([*k_diffusion(case, start, BATCH.noises[: table.used, number])])
        ends = np.append(np.flatnonzero(np.diff(table.steps)), table.used - 1)
        ours = BATCH.trajectories[ends, number] / table.alphas[ends + 1][:, None, None, None]
        size = np.abs(theirs).max(axis=(1, 2, 3))
        error = np.abs(ours - theirs).max(axis=(1, 2, 3)) / size
        assert error.max() < 2e-4, f"{error.max():.1e} at step {error.argmax()} of {case.options}"
