"""Euler's method, plain and ancestral, on latents `image + sigma * noise`."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.rows import Table, denoiser, pack
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.spacing import euler_levels


def euler(config: SchedulerConfig, steps: int) -> Table:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without churn and without the second-order correction."""
    times, sigmas = euler_levels(config, steps)
    return _table(config, times, sigmas, sigmas[1:], np.zeros(steps))


def euler_ancestral(config: SchedulerConfig, steps: int, eta: float) -> Table:
    """Euler to a lower level than the next, then fresh noise up to it, so that variances match the forward process.

    Ancestral sampling is Ho et al. 2020 (arXiv:2006.11239), algorithm 2; in terms of sigma it is k-diffusion's
    `sample_euler_ancestral`. `eta` scales the fresh noise: 1 is ancestral sampling, 0 is `euler`.
    """
    times, sigmas = euler_levels(config, steps)
    sigmas[-1] = 0.0  # diffusers' class has no final_sigmas_type
    here, there = sigmas[:-1], sigmas[1:]
    up = eta * there * np.sqrt(np.maximum(1 - (there / here) ** 2, 0))
    return _table(config, times, sigmas, np.sqrt(there**2 - up**2), up)


def _table(config: SchedulerConfig, times: np.ndarray, sigmas: np.ndarray, target: np.ndarray, up: np.ndarray) -> Table:
    """Rows that go along (x - D) / sigma from each sigma to `target`, and then add `up` times noise."""
    here = sigmas[:-1]
    shrink = 1 / np.sqrt(here**2 + 1)
    c_skip, c_out = denoiser(config.noise.prediction_type, shrink, here * shrink)
    highest = here.max()
    # diffusers starts `leading` from the variance of noise and image together, and the others from the noise's alone
    leading = config.timestep_spacing == "leading"
    return pack(
        timesteps=times,
        init_scale=np.hypot(highest, 1) if leading else highest,
        alphas=np.ones_like(sigmas),
        sigmas=sigmas,
        c_in=shrink,
        c_skip=c_skip * shrink,
        c_out=c_out,
        x_x=target / here,
        x_d=1 - target / here,
        x_noise=up,
        push_d=1,
    )
