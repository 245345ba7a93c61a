"""DPM-Solver++ with one network call a step, on latents of unit variance."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.rows import Table, denoiser, pack
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.spacing import dpm_levels
from jaxl.errors import CheckpointError


def dpmpp_2m(config: SchedulerConfig, steps: int) -> Table:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), algorithm 2; `solver_order` 1 is DDIM in log-SNR."""
    return _multistep(config, steps, 0.0)


def dpmpp_2m_sde(config: SchedulerConfig, steps: int, eta: float) -> Table:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), section 5 and appendix B.

    `eta` scales the noise as in k-diffusion's `sample_dpmpp_2m_sde`: 1 is the paper's, 0 is `dpmpp_2m`.
    """
    return _multistep(config, steps, eta)


def _multistep(config: SchedulerConfig, steps: int, eta: float) -> Table:
    if config.solver_order not in (1, 2):
        raise CheckpointError(f"solver_order={config.solver_order!r} is not supported, only 1 or 2")
    times, levels = dpm_levels(config, steps)
    alphas = 1 / np.sqrt(levels**2 + 1)
    sigmas = levels * alphas
    decay = levels[1:] / levels[:-1]  # exp(-h), where h is the step in log-SNR / 2; 0 at the very end
    reach = alphas[1:] * (1 - decay ** (1 + eta))

    second = np.full(steps, config.solver_order == 2)
    second[0] = False
    if config.final_sigmas_type == "zero" or config.euler_at_final or (config.lower_order_final and steps < 15):
        second[-1] = False
    with np.errstate(divide="ignore"):
        h = -np.log(decay)
    before = np.append(0.0, h[:-1])
    # with almost every timestep visited, rounding visits some twice: no slope can be had from those
    second &= before > 0
    if config.solver_type == "heun":
        span = np.where(second & (h > 0), (1 + eta) * h, 1.0)
        weight = np.where(h > 0, alphas[1:] * (1 + np.expm1(-span) / span), 0.0)
    else:
        weight = reach / 2
    slope = weight * np.divide(h, before, out=np.zeros(steps), where=second)

    c_skip, c_out = denoiser(config.noise.prediction_type, alphas[:-1], sigmas[:-1])
    return pack(
        timesteps=times,
        init_scale=1.0,
        alphas=alphas,
        sigmas=sigmas,
        c_in=1,
        c_skip=c_skip,
        c_out=c_out,
        x_x=sigmas[1:] / sigmas[:-1] * decay**eta,
        x_d=reach + slope,
        x_h1=-slope,
        x_noise=sigmas[1:] * np.sqrt(np.maximum(1 - decay ** (2 * eta), 0)),
        push_d=1,
    )
