"""Which noise levels a sampler visits: timesteps out of the training range, and the sigmas that belong to them.

All arrays are float64 on the host and run from the noisiest level down. `sigma` is noise over signal. The spacings are
those of Lin et al. 2023 (arXiv:2305.08891, table 2). diffusers' classes differ in rounding and in their end points, and
jaxl follows each class, because its timesteps are what users compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.errors import CheckpointError, InputError

RESULT_TIME = 1  # the timestep at which A1111's own samplers end


@dataclass(frozen=True)
class Levels:
    """The noise levels of a run, the noisiest first: `times` [n], and `sigmas` [n + 1], whose last is the result's.

    `total` is the number of steps of the whole schedule, of which a run that starts from a picture makes the last n.
    """

    times: np.ndarray
    sigmas: np.ndarray
    total: int

    def at(self, places: Sequence[int]) -> Levels:
        """The levels of these steps alone, each of which goes as far as the next one's level, or to the result's."""
        steps = [*places]
        return Levels(self.times[steps], self.sigmas[[*steps, -1]], total=steps[0] + len(steps))

    def from_picture(self, places: Sequence[int]) -> Levels:
        """The levels of these steps for a run that begins with a picture: those `at` them, or what is there instead."""
        return self.at(places)

    def without_penultimate(self) -> Levels:
        """The levels without the last one before the result's."""
        return Levels(self.times[:-1], np.delete(self.sigmas, -2), self.total - 1)


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


def exponential_sigmas(highest: float, lowest: float, steps: int) -> np.ndarray:
    """Sigmas evenly spaced in their logarithm, [steps]."""
    return np.exp(np.linspace(np.log(highest), np.log(lowest), steps))


def beta_sigmas(highest: float, lowest: float, steps: int) -> np.ndarray:
    """Sigmas at the quantiles of a beta distribution, [steps] (Lee et al. 2024, arXiv:2407.12173)."""
    return lowest + beta_quantiles(np.linspace(1, 0, steps)) * (highest - lowest)


def beta_quantiles(shares: np.ndarray) -> np.ndarray:
    """The quantiles of the beta distribution with both parameters 0.6, which denoising has been found to like."""
    from scipy.special import betaincinv  # a quarter of a second to import, for one of many spacings

    return betaincinv(0.6, 0.6, shares)


def sigma_to_timestep(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The fractional timestep of each sigma, by linear interpolation of log sigma, held at both ends of `trained`."""
    return np.interp(np.log(sigmas), np.log(trained), np.arange(trained.size))


def timestep_to_sigma(timesteps: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The sigma of each timestep, by linear interpolation, held at both ends of `trained`."""
    return np.interp(timesteps, np.arange(trained.size), trained)


def told(noise: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    """What the network is told at each sigma above 0: the fractional timestep, or EDM's `log(sigma) / 4`.

    On a straight path it is sigma, counted in timesteps.
    """
    if noise.flow is not None:
        return sigmas * noise.num_train_timesteps
    return np.log(sigmas) / 4 if noise.edm is not None else sigma_to_timestep(sigmas, noise.sigmas())


def euler_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' EulerDiscreteScheduler and its relatives.

    `linspace` timesteps are fractional. Other sigma schedules span the sigmas of the chosen spacing, not the trained
    range.
    """
    trained = config.noise.sigmas()
    times = _spread(config, steps, points=steps, whole=False)
    sigmas = timestep_to_sigma(times, trained)
    if config.sigma_schedule is not None:
        sigmas = _scheduled(config.sigma_schedule, sigmas[0], sigmas[-1], steps)
        times = sigma_to_timestep(sigmas, trained)
    return Levels(times, np.append(sigmas, final_sigma(config, trained)), steps)


def kdpm2_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' KDPM2DiscreteScheduler: `euler_levels` with whole timesteps for Karras sigmas."""
    levels = euler_levels(config, steps)
    return replace(levels, times=levels.times.round()) if config.sigma_schedule == "karras" else levels


def dpm_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' DPMSolverMultistepScheduler and its relatives.

    Timesteps are whole: with Karras sigmas they are rounded, or cut off for `squaredcos_cap_v2` and with the other
    sigma schedules, which span the whole trained range.
    """
    return _dpm_levels(config, steps, rounds=config.noise.beta_schedule != "squaredcos_cap_v2")


def multistep_levels(config: SchedulerConfig, steps: int) -> Levels:
    """`dpm_levels`, but the timesteps of Karras sigmas are rounded for every kind of betas."""
    return _dpm_levels(config, steps, rounds=True)


def ddim_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' DDIMScheduler and its relatives, which default to `leading`: timesteps are whole (int64)."""
    times = _spread(config, steps, points=steps, whole=True, default="leading").astype(np.int64)
    trained = config.noise.sigmas()
    return Levels(times, np.append(timestep_to_sigma(times, trained), 0.0), steps)


def strided_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of A1111's own samplers: every so many-th timestep, down to 1, which is the result's.

    They make a step less than `steps`, and more where these do not divide the timesteps. Raises InputError for one
    step, which would make none.
    """
    total = config.noise.num_train_timesteps
    times = np.minimum(np.arange(0, total, total // steps) + RESULT_TIME, total - 1)[::-1]
    if times.size < 2:
        raise InputError("steps", steps, "A1111's samplers make one step less; give 2 or more")
    return Levels(times[:-1], config.noise.sigmas()[times], times.size - 1)


def edm_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' EDMEulerScheduler: from `sigma_max` to `sigma_min`, Karras's unless stated otherwise."""
    edm = config.noise.edm
    if edm is None:
        raise CheckpointError(
            "the model was not trained with EDM noise, which 'edm_euler' and 'edm_dpm++2m' are for; use "
            "`scheduler='euler'` or 'dpm++2m'"
        )
    kind = config.sigma_schedule or "karras"
    sigmas = _scheduled(kind, edm.sigma_max, edm.sigma_min, steps, edm.rho)
    final = edm.sigma_min if config.final_sigmas_type == "sigma_min" else 0.0
    return Levels(told(config.noise, sigmas), np.append(sigmas, final), steps)


def flow_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Those of diffusers' FlowMatchEulerDiscreteScheduler, from 1 to the lowest trained level, evenly before the shift.

    As there, the shift has been in the lowest level before it is in all of them.
    """
    noise = config.noise
    trained = noise.sigmas()
    sigmas = np.linspace(1.0, trained[0], steps)
    sigmas = sigmas if noise.flow is None else noise.flow.shifted(sigmas)
    if config.sigma_schedule is not None:
        sigmas = _scheduled(config.sigma_schedule, sigmas[0], sigmas[-1], steps)
    return sigma_levels(config, np.append(sigmas, final_sigma(config, trained)))


def timestep_levels(config: SchedulerConfig, timesteps: ArrayLike) -> Levels:
    """The given timesteps, falling."""
    trained = config.noise.sigmas()
    times = np.asarray(timesteps, np.float64)
    return Levels(times, np.append(timestep_to_sigma(times, trained), final_sigma(config, trained)), times.size)


def sigma_levels(config: SchedulerConfig, sigmas: ArrayLike) -> Levels:
    """The given sigmas, falling; the last is the result's, which may be 0."""
    levels = np.asarray(sigmas, np.float64)
    return Levels(told(config.noise, levels[:-1]), levels, levels.size - 1)


def _spread(config: SchedulerConfig, steps: int, *, points: int, whole: bool, default: str = "linspace") -> np.ndarray:
    spacing = config.timestep_spacing or default
    total, offset = config.noise.num_train_timesteps, config.steps_offset
    return spread_timesteps(spacing, total, steps, offset=offset, points=points, whole=whole)


def _dpm_levels(config: SchedulerConfig, steps: int, *, rounds: bool) -> Levels:
    trained = config.noise.sigmas()
    schedule = config.sigma_schedule
    if schedule is None:
        times = _spread(config, steps, points=steps + 1, whole=True)
        sigmas = timestep_to_sigma(times, trained)
    else:
        sigmas = _scheduled(schedule, trained[-1], trained[0], steps)
        # as diffusers has it: the highest of SDXL's is 998.9999 in float32, and cut off to 998
        single = config.noise.sigmas(np.float32)
        times = sigma_to_timestep(_scheduled(schedule, float(single[-1]), float(single[0]), steps), single)
        times = times.round() if rounds and schedule == "karras" else np.floor(times)
    return Levels(times, np.append(sigmas, final_sigma(config, trained)), steps)


def _scheduled(schedule: str, highest: float, lowest: float, steps: int, rho: float = 7.0) -> np.ndarray:
    if schedule == "karras":
        return karras_sigmas(highest, lowest, steps, rho)
    return (exponential_sigmas if schedule == "exponential" else beta_sigmas)(highest, lowest, steps)


def final_sigma(config: SchedulerConfig, trained: np.ndarray) -> float:
    """The sigma of the result: 0 unless `final_sigmas_type` is `sigma_min`."""
    return float(trained[0]) if config.final_sigmas_type == "sigma_min" else 0.0
