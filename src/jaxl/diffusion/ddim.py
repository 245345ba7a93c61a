"""DDIM, on latents of unit variance."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.rows import Table, denoiser, pack
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.spacing import ddim_timesteps
from jaxl.errors import CheckpointError


def ddim(config: SchedulerConfig, steps: int, eta: float) -> Table:
    """Song et al. 2020 (arXiv:2010.02502), equations 12 and 16; `eta` 0 is deterministic, 1 has the noise of DDPM.

    As in diffusers a step aims at `t - T // steps`, which is not always the next timestep visited. Raises
    CheckpointError where the checkpoint asks for clipping, which is not linear and means nothing for latents.
    """
    if config.clip_sample:
        raise CheckpointError("clip_sample=True is not supported by scheduler='ddim', only False")
    shares = config.noise.alphas_cumprod()
    times = ddim_timesteps(config, steps)
    aims = times - shares.size // steps
    final = shares[0] if config.set_alpha_to_one is False else 1.0
    # timesteps past the end (steps_offset with every timestep visited) have the last level, as in the other schedulers
    here = shares[np.minimum(times, shares.size - 1)]
    there = np.where(aims >= 0, shares[np.clip(aims, 0, shares.size - 1)], final)
    kept = np.divide(here, there, out=np.ones(steps), where=there > 0)
    deviation = eta * np.sqrt((1 - there) / (1 - here) * np.maximum(1 - kept, 0))
    alphas, sigmas = np.sqrt(here), np.sqrt(1 - here)
    direction = np.sqrt(np.maximum(1 - there - deviation**2, 0)) / sigmas
    c_skip, c_out = denoiser(config.noise.prediction_type, alphas, sigmas)
    return pack(
        timesteps=times,
        init_scale=1.0,
        alphas=np.append(alphas, np.sqrt(there[-1])),
        sigmas=np.append(sigmas, np.sqrt(1 - there[-1])),
        c_in=1,
        c_skip=c_skip,
        c_out=c_out,
        x_x=direction,
        x_d=np.sqrt(there) - direction * alphas,
        x_noise=deviation,
        push_d=1,
    )
