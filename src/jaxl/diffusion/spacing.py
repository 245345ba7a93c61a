"""Which noise levels a sampler visits: timesteps out of the training range, and the sigmas that belong to them.

All arrays are float64 on the host and run from the noisiest level down. `sigma` is noise over signal. The spacings are
those of Lin et al. 2023 (arXiv:2305.08891, table 2). diffusers' classes differ in rounding and in their end points, and
jaxl follows each class, because its timesteps are what users compare.
"""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.errors import CheckpointError


def spread_timesteps(spacing: str, total: int, steps: int, *, offset: int, points: int, whole: bool) -> np.ndarray:
    """`steps` falling timesteps out of `total`, [steps].

    `linspace` and `leading` lay out `points` of them and take the first `steps`, so `points=steps + 1` leaves the
    cleanest one away. `whole` rounds `linspace`; the other two are whole anyway. `offset` shifts `leading` alone.
    """
    if spacing == "linspace":
        times = np.linspace(0, total - 1, points)
        return (times.round() if whole else times)[::-1][:steps]
    if spacing == "leading":
        # a stride of 0 (points > total) would never leave the first level; diffusers divides by zero there
        return (np.arange(points) * max(1, total // points))[::-1][:steps].astype(np.float64) + offset
    if spacing == "trailing":
        # for some counts (61, 103, ...) rounding makes arange give one more, timestep -1, which diffusers then visits
        return np.arange(total, 0, -total / steps)[:steps].round() - 1
    raise CheckpointError(f"timestep_spacing={spacing!r} is not supported")


def karras_sigmas(highest: float, lowest: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Sigmas evenly spaced in their rho-th root, [steps] (Karras et al. 2022, arXiv:2206.00364, equation 5)."""
    return np.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps) ** rho


def sigma_to_timestep(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The fractional timestep of each sigma, by linear interpolation of log sigma, held at both ends of `trained`."""
    return np.interp(np.log(sigmas), np.log(trained), np.arange(trained.size))


def timestep_to_sigma(timesteps: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The sigma of each timestep, by linear interpolation, held at both ends of `trained`."""
    return np.interp(timesteps, np.arange(trained.size), trained)


def euler_levels(config: SchedulerConfig, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [steps] and sigmas [steps + 1] of diffusers' EulerDiscreteScheduler and its relatives.

    `linspace` timesteps are fractional. Karras sigmas span the sigmas of the chosen spacing, not the trained range.
    """
    trained = config.noise.sigmas()
    times = _spread(config, steps, points=steps, whole=False)
    sigmas = timestep_to_sigma(times, trained)
    if config.use_karras_sigmas:
        sigmas = karras_sigmas(sigmas[0], sigmas[-1], steps)
        times = sigma_to_timestep(sigmas, trained)
    return times, np.append(sigmas, _final_sigma(config, trained))


def dpm_levels(config: SchedulerConfig, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [steps] and sigmas [steps + 1] of diffusers' DPMSolverMultistepScheduler and its relatives.

    Timesteps are whole: with Karras sigmas they are rounded, or cut off for `squaredcos_cap_v2`. Karras sigmas span the
    whole trained range.
    """
    trained = config.noise.sigmas()
    if config.use_karras_sigmas:
        sigmas = karras_sigmas(trained[-1], trained[0], steps)
        times = sigma_to_timestep(sigmas, trained)
        times = np.floor(times) if config.noise.beta_schedule == "squaredcos_cap_v2" else times.round()
    else:
        times = _spread(config, steps, points=steps + 1, whole=True)
        sigmas = timestep_to_sigma(times, trained)
    return times, np.append(sigmas, _final_sigma(config, trained))


def ddim_timesteps(config: SchedulerConfig, steps: int) -> np.ndarray:
    """Whole timesteps [steps], int64, of diffusers' DDIMScheduler and its relatives, which default to `leading`."""
    return _spread(config, steps, points=steps, whole=True, default="leading").astype(np.int64)


def _spread(config: SchedulerConfig, steps: int, *, points: int, whole: bool, default: str = "linspace") -> np.ndarray:
    spacing = config.timestep_spacing or default
    total, offset = config.noise.num_train_timesteps, config.steps_offset
    return spread_timesteps(spacing, total, steps, offset=offset, points=points, whole=whole)


def _final_sigma(config: SchedulerConfig, trained: np.ndarray) -> float:
    return float(trained[0]) if config.final_sigmas_type == "sigma_min" else 0.0
