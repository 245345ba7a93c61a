"""Restart sampling, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.slopes import pack_slopes
from jaxl.diffusion.solvers.solver import Solver
from jaxl.diffusion.spacing import Levels, euler_levels, karras_sigmas, told

FEWEST = 20  # steps that have a restart
LOW, HIGH = 0.1, 2.0  # from where it goes back up, and to where


def restart(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Xu et al. 2023 (arXiv:2306.14878), algorithm 1: Heun's steps, and from a low level back up by fresh noise.

    The plan is that of A1111's `Restart` (`modules/sd_samplers_extra.py`): fewer than 20 steps have no restart, fewer
    than 36 one of 9 steps, more than that two of a quarter of them each; the other steps are laid out as Karras et al.
    do between the highest and the lowest of `levels`. All of them together are as many as the levels.
    """
    here, there = _pairs(levels)
    up = np.append(here[1:], there[-1])
    fresh = randomness.s_noise * np.sqrt(np.maximum(up**2 - there**2, 0))
    way = there - here
    times = levels.times if np.array_equal(here, levels.sigmas[:-1]) else told(config.noise, here)
    second = there > 0  # a step to no noise is Euler's
    row = 2 * np.arange(here.size)
    rows = row[-1] + 1 + int(second[-1])
    weights, noise, sigmas, timesteps = np.zeros((4, rows)), np.zeros(rows), np.zeros(rows), np.zeros(rows)
    weights[0, row], sigmas[row], timesteps[row] = way, here, times
    after = row[second] + 1
    weights[:2, after] = way[second] / 2, -way[second] / 2
    sigmas[after], timesteps[after], noise[after] = there[second], told(config.noise, there[second]), fresh[second]
    return pack_slopes(
        config,
        timesteps=timesteps,
        init_scale=start_scale(config, levels),
        sigmas=np.append(sigmas, there[-1]),
        steps=np.arange(rows) // 2,
        weights=weights,
        noise=noise,
    )


def _pairs(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """The level at which each step begins, and that to which it leads, [n] each."""
    sigmas, n = levels.sigmas, levels.times.size
    length, times = (9, 1) if n < 36 else (n // 4, 2)
    way = np.append(karras_sigmas(sigmas[0], sigmas[-2], max(n - length * times, 1)), sigmas[-1])
    low, high = (int(np.abs(way[:-1] - level).argmin()) for level in (LOW, HIGH))
    if n < FEWEST or low <= high:
        return sigmas[:-1], sigmas[1:]
    again = karras_sigmas(way[high], way[low], length + 1)
    here = [way[:low], *[again[:-1]] * times, way[low:-1]]
    there = [way[1 : low + 1], *[again[1:]] * times, way[low + 1 :]]
    return np.concatenate(here), np.concatenate(there)


SOLVERS = (Solver("restart", restart, euler_levels, a1111="Restart", automatic="karras"),)
