"""Samplers of models that were distilled for a few steps: LCM and TCD, on latents of unit variance but where named."""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.randomness import Randomness
from jaxl.diffusion.rows import Table, pack_sigmas
from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.solvers.ddim import refuse_clipping, renoised, signal_shares
from jaxl.diffusion.solvers.euler import start_scale
from jaxl.diffusion.solvers.solver import LATENT_SCHEDULE, DiffusersClass, Solver
from jaxl.diffusion.spacing import Levels, timestep_to_sigma
from jaxl.errors import CheckpointError, InputError

SIGMA_DATA = 0.5


def consistency_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' LCMScheduler and TCDScheduler: `steps` of the timesteps of the distillation.

    Raises InputError for more steps than `original_inference_steps`.
    """
    total, original = config.noise.num_train_timesteps, config.original_inference_steps
    if not 1 <= original <= total:
        raise CheckpointError(f"original_inference_steps={original} must be a whole number from 1 to {total}")
    if steps > original:
        raise InputError("steps", steps, f"must be at most {original}, the number of steps before the distillation")
    distilled = np.arange(original, 0, -1) * (total // original) - 1
    times = distilled[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    return Levels(times, np.append(timestep_to_sigma(times, config.noise.sigmas()), 0.0), steps)


def lcm(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Luo et al. 2023 (arXiv:2310.04378), algorithm 3: the consistency function's image, noised anew to the next level.

    The function is the boundary condition of section 4.1 around the denoised estimate.
    """
    refuse_clipping(config, "lcm")
    times = levels.times * config.timestep_scaling
    boundary = SIGMA_DATA**2 / (times**2 + SIGMA_DATA**2), times / np.hypot(times, SIGMA_DATA)
    there = np.append(signal_shares(config.noise, levels.times[1:]), 1.0)
    fresh = np.sqrt(1 - there)
    return renoised(config.noise, levels, there, fresh, added=randomness.s_noise * fresh, boundary=boundary)


def distilled_levels(config: SchedulerConfig, steps: int) -> Levels:
    """A1111's for LCM: even places among the timesteps of the distillation, with the logarithms of sigmas between."""
    total, original = config.noise.num_train_timesteps, config.original_inference_steps
    known = np.arange(1, original + 1) * (total // original) - 1
    places = np.linspace(original - 1, 0, steps)
    logs = np.interp(places, np.arange(original), np.log(config.noise.sigmas()[known]))
    return Levels(np.interp(places, np.arange(original), known), np.append(np.exp(logs), 0.0), steps)


def lcm_sigmas(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """`lcm` on latents `image + sigma * noise`, at any levels, as ComfyUI and A1111 have it.

    A1111's boundary condition differs from the estimate by less than a hundred-thousandth, and ComfyUI has none.
    """
    return pack_sigmas(
        config.noise,
        timesteps=levels.times,
        init_scale=start_scale(config, levels),
        sigmas=levels.sigmas,
        x_d=1,
        x_noise=randomness.s_noise * levels.sigmas[1:],
        push_d=1,
    )


def tcd(config: SchedulerConfig, levels: Levels, randomness: Randomness) -> Table:
    """Zheng et al. 2024 (arXiv:2402.19159), algorithm 4: to a cleaner timestep than the next, then noise up to that.

    `eta` is the paper's gamma: 0 goes straight to the next timestep, 1 to timestep 0 each time. The result is that of
    timestep 0.
    """
    refuse_clipping(config, "tcd")
    following = np.append(levels.times[1:], 0)
    # as in diffusers, where float32 decides which whole number it comes to
    cleaner = np.floor(np.float32(1 - randomness.eta) * following.astype(np.float32))
    there = signal_shares(config.noise, following)
    fresh = np.sqrt(np.maximum(1 - there / signal_shares(config.noise, cleaner), 0))
    return renoised(config.noise, levels, there, fresh, added=randomness.s_noise * fresh)


_OPTIONS = ("original_inference_steps", "timestep_scaling")

SOLVERS = (
    Solver(
        "lcm",
        lcm,
        consistency_levels,
        custom=("timesteps",),
        schedules=(),
        diffusers=DiffusersClass("LCMScheduler", defaults=LATENT_SCHEDULE, options=_OPTIONS),
        a1111="LCM",
    ),
    Solver("lcm_sigmas", lcm_sigmas, distilled_levels),
    Solver(
        "tcd",
        tcd,
        consistency_levels,
        eta=0.3,
        custom=("timesteps",),
        schedules=(),
        diffusers=DiffusersClass("TCDScheduler", defaults=LATENT_SCHEDULE, options=_OPTIONS),
    ),
)
