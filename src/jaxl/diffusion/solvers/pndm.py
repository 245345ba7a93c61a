"""Pseudo numerical methods, on latents of unit variance: PLMS, and PNDM with its Runge-Kutta warm-up."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, denoiser, pack
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.ddim import begun_above, signal_shares, strided_aims
from jaxl.diffusion.solvers.solver import DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, ddim_levels, strided_levels

# of the network's output and of the three before it, for the orders from 1 (Liu et al., equation 12)
ADAMS = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)
WARM_UP = 3  # Runge-Kutta steps, which give the three outputs that order 4 asks for


def plms(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Liu et al. 2022 (arXiv:2202.09778), algorithm 2, with orders that grow from 1 in place of the warm-up.

    The first step is done again with the mean of the outputs at both of its ends: its second row starts from `saved`.
    diffusers leaves a level out there for a run that starts in the middle; jaxl begins anew.
    """
    n, stride = levels.times.size, config.noise.num_train_timesteps // levels.total
    times = levels.times[np.insert(np.arange(n), 1, 1) if n > 1 else [0]]
    again = np.arange(times.size) == 1
    return _plms(config, times, times + again * stride, times - ~again * stride)


def plms_a1111(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`plms` as A1111 has it: from each timestep to the next, and to timestep 1 at the end."""
    starts, aims = (np.insert(each, 1, each[0]) for each in (levels.times, strided_aims(levels)))
    times = np.insert(levels.times, 1, aims[0])
    return begun_above(config.noise, levels, _plms(config, times, starts, aims))


def _plms(config: SchedulerConfig, times: np.ndarray, starts: np.ndarray, aims: np.ndarray) -> Table:
    """Rows that the network is told `times` in, and that lead from `starts` to `aims`, [rows]; two of a first step."""
    index = np.arange(times.size)
    again = (index == 1).astype(np.float64)
    kept, drift = _transfer(config, starts, aims)
    weights = ADAMS[np.clip(index - 1, 0, 3)]
    weights[1:2] = [1 / 2, 1 / 2, 0, 0]
    saved = np.zeros((3, index.size))
    saved[0, 0] = 1
    steps = np.maximum(index - 1, 0)
    return _table(config, times, aims[-1:], steps, kept=kept, drift=drift, weights=weights, restarts=again, saved=saved)


def pndm(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Liu et al. 2022 (arXiv:2202.09778), algorithm 2: up to three Runge-Kutta steps of four rows, then order 4.

    The rows of such a step end in its middle twice and at its end twice; `saved` holds its start. Its first output is
    pushed, its second is found again from the latents and the start, and the third row adds both of the middle to
    `saved`. diffusers needs four steps and cannot start in the middle; jaxl warms up as far as there are steps.
    """
    n, stride = levels.times.size, config.noise.num_train_timesteps // levels.total
    warm, half = min(WARM_UP, n - 1), stride // 2
    start, end, after = levels.times[:warm], levels.times[1 : warm + 1], levels.times[warm:]
    middle = end + half

    def rows(four: list[np.ndarray], rest: np.ndarray) -> np.ndarray:
        return np.append(np.stack(four, axis=1), rest)

    times = rows([start, middle, middle, end], after)
    aims = rows([start - half, middle, end, end], after - stride)
    kept, drift = _transfer(config, rows([start] * 4, after), aims)
    first, second, third, fourth = (np.arange(row, 4 * warm, 4) for row in range(4))
    weights = np.append(np.tile(ADAMS[0], (4 * warm, 1)), ADAMS[np.minimum(warm + np.arange(after.size), 3)], axis=0)
    weights[fourth] = [1 / 6, 1 / 6, 0, 0]
    restarts = np.append(np.tile([0.0, 1, 1, 1], warm), np.zeros(after.size))
    # the middle is the start where two timesteps past the last trained one are held there
    found = np.divide(drift[third] / 3, drift[second], out=np.zeros(warm), where=drift[second] != 0)
    saved = np.zeros((3, times.size))
    saved[0, first] = saved[1, second] = 1
    saved[:, third] = found, kept[third] - found * kept[second], drift[third] / 3
    kept[fourth] = 1
    steps = np.append(np.arange(warm).repeat(4), np.arange(warm, n))
    return _table(
        config, times, aims[-1:], steps, kept=kept, drift=drift, weights=weights, restarts=restarts, saved=saved
    )


def _transfer(config: SchedulerConfig, times: np.ndarray, aims: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the latents at `times` and the network's output are multiplied by to lead to `aims`, [rows] each.

    Equation 9 of the paper; the output is noise for `epsilon`, and else counts as velocity. `aims` before the first
    timestep are that one, unless `set_alpha_to_one`.
    """
    here = signal_shares(config.noise, times)
    there = signal_shares(config.noise, aims, before_first=bool(config.set_alpha_to_one))
    alphas, sigmas = np.sqrt(here), np.sqrt(1 - here)
    aim_alphas, aim_sigmas = np.sqrt(there), np.sqrt(1 - there)
    if config.noise.prediction_type != "epsilon":
        return aim_alphas * alphas + aim_sigmas * sigmas, aim_sigmas * alphas - aim_alphas * sigmas
    return aim_alphas / alphas, aim_sigmas - aim_alphas / alphas * sigmas


def _table(
    config: SchedulerConfig,
    times: np.ndarray,
    end: np.ndarray,
    steps: np.ndarray,
    *,
    kept: np.ndarray,
    drift: np.ndarray,
    weights: np.ndarray,
    restarts: np.ndarray,
    saved: np.ndarray,
) -> Table:
    """Rows that lead from the latents, or from `saved` where one `restarts` (then nothing is pushed), [rows].

    `end` [1] is the timestep that the last row leads to. `weights` [rows, 4] are those of the network's output and of
    the three in the history; `saved` [3, rows] what the new `saved` has of the latents, of itself and of the output.
    """
    here = signal_shares(config.noise, times)
    alphas, sigmas = np.sqrt(here), np.sqrt(1 - here)
    c_skip, c_out = denoiser(config.noise.prediction_type, alphas, sigmas)
    # the output, found again from the latents and the estimate
    noises = config.noise.prediction_type == "epsilon"
    output_x, output_d = (1 / sigmas, -alphas / sigmas) if noises else (alphas / sigmas, -1 / sigmas)
    latest, *past = (drift * weight for weight in weights.T)
    final = signal_shares(config.noise, end, before_first=bool(config.set_alpha_to_one))
    return pack(
        timesteps=times,
        init_scale=1.0,
        alphas=np.append(alphas, np.sqrt(final)),
        sigmas=np.append(sigmas, np.sqrt(1 - final)),
        steps=steps,
        c_in=1,
        c_skip=c_skip,
        c_out=c_out,
        x_x=(1 - restarts) * kept + latest * output_x,
        x_saved=restarts * kept,
        x_d=latest * output_d,
        x_h1=past[0],
        x_h2=past[1],
        x_h3=past[2],
        saved_x=saved[0] + saved[2] * output_x,
        saved_saved=saved[1],
        saved_d=saved[2] * output_d,
        push_x=(1 - restarts) * output_x,
        push_d=(1 - restarts) * output_d,
    )


_PNDM = DiffusersClass("PNDMScheduler", lambda config: "plms" if config.get("skip_prk_steps") else "pndm")

SOLVERS = (
    Solver("plms", plms, ddim_levels, custom=(), schedules=(), diffusers=_PNDM, a1111="PLMS"),
    Solver("plms_a1111", plms_a1111, strided_levels, custom=(), schedules=(), a1111="PLMS", form_of="plms"),
    Solver("pndm", pndm, ddim_levels, custom=(), schedules=(), diffusers=_PNDM),
)
