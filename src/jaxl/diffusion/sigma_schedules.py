"""The sigma schedules, which lay out a run's noise levels whatever the solver, each in a record with its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jaxl.diffusion.schedule import SchedulerConfig
from jaxl.diffusion.spacing import Levels, beta_quantiles, final_sigma, sigma_levels, told

# Sabour et al. 2024 (arXiv:2404.14507): SDXL's levels for 10 steps, from the authors' page; the last is the result's
AYS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
# the same with more digits, from ComfyUI's `nodes_align_your_steps.py`
AYS_COMFYUI = (
    *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289),
    *(0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
)
# Chen et al. 2024 (arXiv:2405.11326), coefficient 1.2: for 2 to 20 steps, in hundredths of the timesteps
GITS = (
    (100, 29),
    (100, 49, 18),
    (100, 61, 33, 11),
    (100, 66, 42, 21, 6),
    (100, 83, 57, 34, 15, 3),
    (100, 83, 62, 42, 23, 8, 1),
    (100, 83, 62, 45, 29, 15, 6, 1),
    (100, 83, 66, 50, 34, 21, 11, 4, 1),
    (100, 83, 66, 51, 38, 27, 17, 9, 4, 1),
    (100, 83, 67, 54, 42, 30, 21, 13, 7, 3, 1),
    (100, 83, 68, 56, 45, 34, 25, 17, 11, 6, 3, 1),
    (100, 86, 71, 61, 49, 38, 29, 21, 15, 10, 6, 3, 1),
    (100, 86, 71, 62, 50, 40, 31, 23, 17, 12, 8, 5, 3, 1),
    (100, 88, 78, 68, 58, 48, 38, 30, 23, 17, 12, 8, 5, 3, 1),
    (100, 88, 78, 68, 58, 48, 38, 30, 23, 17, 13, 9, 6, 4, 2, 1),
    (100, 88, 78, 68, 58, 48, 38, 30, 23, 17, 13, 10, 7, 5, 3, 2, 1),
    (100, 88, 78, 68, 59, 50, 41, 33, 26, 20, 15, 11, 8, 6, 4, 3, 2, 1),
    (100, 88, 78, 68, 59, 50, 42, 34, 27, 21, 16, 12, 9, 7, 5, 4, 3, 2, 1),
    (100, 88, 78, 68, 59, 50, 42, 34, 27, 21, 17, 13, 10, 8, 6, 5, 4, 3, 2, 1),
)


def sgm_uniform(config: SchedulerConfig, steps: int) -> Levels:
    """Stability's generative-models: evenly spaced timesteps, fractional, the last of which is left out."""
    return _at(config, _even_times(config, steps + 1)[:-1])


def uniform(config: SchedulerConfig, steps: int) -> Levels:
    """k-diffusion's `get_sigmas`: evenly spaced timesteps, fractional, down to 0.

    A1111 calls it "Uniform", ComfyUI "normal". diffusers' `linspace` has other sigmas at the same timesteps, since it
    interpolates them, and not their logarithms.
    """
    return _at(config, _even_times(config, steps))


def simple(config: SchedulerConfig, steps: int) -> Levels:
    """Whole timesteps at even distances from the highest, cut off: ComfyUI's and A1111's `simple`."""
    total = config.noise.num_train_timesteps
    return _at(config, total - 1 - np.floor(np.arange(steps) * (total / steps)))


def ddim_uniform(config: SchedulerConfig, steps: int) -> Levels:
    """Every so many-th timestep from 1 on: ComfyUI's `ddim_uniform`, A1111's schedule "DDIM".

    Where `steps` do not divide the timesteps these are more: 31 for 30.
    """
    total = config.noise.num_train_timesteps
    return _at(config, np.arange(min(1, total - 1), total, max(total // steps, 1))[::-1])


def turbo(config: SchedulerConfig, steps: int) -> Levels:
    """Forge's "Turbo": timesteps at even distances, rounded, the last of which is that of one step."""
    total = config.noise.num_train_timesteps
    return _at(config, np.clip((np.arange(steps, 0, -1) * (total / steps) - 1).round(), 0, total - 1))


def beta_comfyui(config: SchedulerConfig, steps: int) -> Levels:
    """ComfyUI's `beta`: timesteps, not sigmas, at the quantiles of a beta distribution (Lee et al., arXiv:2407.12173).

    Rounding makes some equal in a long schedule, which then has fewer steps.
    """
    total = config.noise.num_train_timesteps
    times = np.rint(beta_quantiles(1 - np.linspace(0, 1, steps, endpoint=False)) * (total - 1))
    return _at(config, np.unique(times)[::-1])


def ays(config: SchedulerConfig, steps: int) -> Levels:
    """Align Your Steps; for other numbers than 10 interpolated in log sigma, as its authors do."""
    return _ending(config, _interpolated(AYS, steps + 1))


def ays_comfyui(config: SchedulerConfig, steps: int) -> Levels:
    """`ays` with the digits of ComfyUI's `AlignYourStepsScheduler`."""
    return _ending(config, _interpolated(AYS_COMFYUI, steps + 1))


def ays_a1111(config: SchedulerConfig, steps: int) -> Levels:
    """A1111's "Align Your Steps": `steps` levels down to the lowest knot, where `ays` has that for its result."""
    return _ending(config, np.append(_interpolated(AYS, steps), AYS[-1]))


def gits(config: SchedulerConfig, steps: int) -> Levels:
    """Geometry-inspired time steps, the table of ComfyUI's `GITSScheduler`; beyond 20 interpolated in log sigma."""
    shares = GITS[min(steps, len(GITS) + 1) - 2] if steps > 1 else (100,)
    logs = np.log(config.noise.sigmas())
    sigmas = np.exp(np.interp(np.array([*shares, 0]) / 100 * (logs.size - 1), np.arange(logs.size), logs))
    return _ending(config, _interpolated(sigmas, steps + 1))


def polyexponential(config: SchedulerConfig, steps: int, rho: float = 1.0) -> Levels:
    """k-diffusion's `get_sigmas_polyexponential`: a power of an even ramp in log sigma over the trained range.

    With the power 1, A1111's default, it is exponential; `exponential` alone spans what the solver's spacing does.
    """
    highest, lowest = np.log(_range(config))
    return _ending(config, np.append(np.exp(np.linspace(1, 0, steps) ** rho * (highest - lowest) + lowest), 0.0))


def kl_optimal(config: SchedulerConfig, steps: int) -> Levels:
    """A1111's "KL Optimal": evenly spaced in arctan sigma (Sabour et al., arXiv:2404.14507, eq. 9), to the lowest."""
    return sigma_levels(config, _even_angles(config, steps + 1))


def kl_optimal_comfyui(config: SchedulerConfig, steps: int) -> Levels:
    """ComfyUI's `kl_optimal`: as many levels as steps, spaced like that, and then 0."""
    return _ending(config, np.append(_even_angles(config, steps), 0.0))


def linear_quadratic(config: SchedulerConfig, steps: int, share: float = 0.025) -> Levels:
    """Half of the steps over a `share` of the highest sigma, then a parabola: Mochi's, in ComfyUI for all models.

    It is in `infer.py` of https://github.com/genmoai/mochi.
    """
    if steps == 1:
        return _ending(config, _range(config)[0] * np.array([1.0, 0.0]))
    half = steps // 2
    rest, index = steps - half, np.arange(half, steps)
    # the parabola that goes on from the line and reaches the whole at the last step
    bend = (half - share * steps) / (half * rest**2)
    line = share / half - 2 * (half - share * steps) / rest**2
    gone = [*(np.arange(half) * share / half), *(bend * index**2 + line * index + bend * half**2), 1.0]
    return _ending(config, _range(config)[0] * (1 - np.array(gone)))


def _range(config: SchedulerConfig) -> tuple[float, float]:
    """The highest and the lowest sigma of the training."""
    if config.noise.edm is not None:
        return config.noise.edm.sigma_max, config.noise.edm.sigma_min
    trained = config.noise.sigmas()
    return float(trained[-1]), float(trained[0])


def _even_angles(config: SchedulerConfig, points: int) -> np.ndarray:
    highest, lowest = np.arctan(_range(config))
    return np.tan(np.linspace(highest, lowest, points))


def _interpolated(knots: Sequence[float] | np.ndarray, points: int) -> np.ndarray:
    """Falling sigmas at `points` of a line through the logarithms of `knots`."""
    return np.exp(np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(knots)), np.log(knots)))


def _ending(config: SchedulerConfig, sigmas: np.ndarray) -> Levels:
    """These sigmas, the last of which becomes the result's."""
    end = _range(config)[1] if config.final_sigmas_type == "sigma_min" else 0.0
    return sigma_levels(config, np.append(sigmas[:-1], end))


def _at(config: SchedulerConfig, times: ArrayLike) -> Levels:
    """Timesteps, falling and counted from 0, with their sigmas, interpolated in the logarithm."""
    noise, times = config.noise, np.asarray(times, np.float64)
    trained = noise.sigmas()
    if noise.flow is not None:
        sigmas = noise.flow.shifted((times + 1) / trained.size)
        times = told(noise, sigmas)
    else:
        sigmas = np.exp(np.interp(times, np.arange(trained.size), np.log(trained)))
    return Levels(times, np.append(sigmas, final_sigma(config, trained)), times.size)


def _even_times(config: SchedulerConfig, points: int) -> np.ndarray:
    """Timesteps from the highest to the lowest, fractional; the shift of a straight path is in the lowest already."""
    noise = config.noise
    lowest = 0.0 if noise.flow is None else noise.sigmas()[0] * noise.num_train_timesteps - 1
    return np.linspace(noise.num_train_timesteps - 1, lowest, points)


@dataclass(frozen=True)
class SigmaSchedule:
    """A sigma schedule: its `levels`, or None where they span those of a solver's own spacing.

    `kinds` are the kinds of noise that can have it. `a1111` is the schedule type of A1111's web UI or of Forge, and
    `aliases` are further names; they are spelled freely as `names` reads them.
    """

    name: str
    levels: Callable[[SchedulerConfig, int], Levels] | None
    kinds: tuple[str, ...] = ("betas", "flow")
    a1111: str | None = None
    aliases: tuple[str, ...] = ()


RANGE = ("betas", "edm", "flow")  # of what needs the highest and the lowest level alone
KNOTS = ("betas",)  # of what was measured for SDXL's betas

# `karras`, `exponential` and `beta` are options of diffusers' classes, so a checkpoint may ask for them
SIGMA_SCHEDULES: Mapping[str, SigmaSchedule] = {
    each.name: each
    for each in (
        SigmaSchedule("karras", None, RANGE, "Karras", ("k", "ka")),
        SigmaSchedule("exponential", None, RANGE, "Exponential", ("exp",)),
        SigmaSchedule("beta", None, RANGE, "Beta"),
        SigmaSchedule("sgm_uniform", sgm_uniform, a1111="SGM Uniform"),
        SigmaSchedule("uniform", uniform, a1111="Uniform", aliases=("normal",)),
        SigmaSchedule("simple", simple, a1111="Simple"),
        SigmaSchedule("ddim_uniform", ddim_uniform, a1111="DDIM"),
        SigmaSchedule("turbo", turbo, a1111="Turbo"),
        SigmaSchedule("beta_comfyui", beta_comfyui),
        SigmaSchedule("polyexponential", polyexponential, RANGE, "Polyexponential"),
        SigmaSchedule("kl_optimal", kl_optimal, RANGE, "KL Optimal"),
        SigmaSchedule("kl_optimal_comfyui", kl_optimal_comfyui, RANGE),
        SigmaSchedule("linear_quadratic", linear_quadratic, RANGE),
        SigmaSchedule("ays", ays, KNOTS),
        SigmaSchedule("ays_a1111", ays_a1111, KNOTS, a1111="Align Your Steps"),
        SigmaSchedule("ays_comfyui", ays_comfyui, KNOTS),
        SigmaSchedule("gits", gits, KNOTS),
    )
}
