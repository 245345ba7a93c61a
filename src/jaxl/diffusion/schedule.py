"""What a checkpoint's `scheduler_config.json` says: the noise the network was trained with, and how to sample.

The two are kept apart. `NoiseSchedule` belongs to the network and holds for every scheduler; the rest of
`SchedulerConfig` are choices of sampling, which a user may replace. So a checkpoint saved with a scheduler that jaxl
lacks still loads, and can be sampled with one that jaxl has.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from jaxl.config import Json, read_fields
from jaxl.errors import CheckpointError

# the class of diffusers behind each of jaxl's schedulers
DIFFUSERS_CLASSES: Mapping[str, str] = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "dpm++2m_sde": "DPMSolverMultistepScheduler",
}

_ALGORITHM_TYPES: Mapping[str, str] = {"dpmsolver++": "dpm++2m", "sde-dpmsolver++": "dpm++2m_sde"}

_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT_SCHEDULE = {**_LATENT_BETAS, "beta_schedule": "scaled_linear"}

# Every class of diffusers that shares this form of noise schedule, with its defaults where they differ from the fields'
# own below. A checkpoint's absent fields mean the defaults of the class that wrote it.
_CLASS_DEFAULTS: Mapping[str, Json] = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSDEScheduler": _LATENT_BETAS,
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": _LATENT_BETAS,
    "KDPM2AncestralDiscreteScheduler": _LATENT_BETAS,
    "KDPM2DiscreteScheduler": _LATENT_BETAS,
    "LCMScheduler": _LATENT_SCHEDULE,
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {},
    "TCDScheduler": _LATENT_SCHEDULE,
    "UniPCMultistepScheduler": {},
}

_IMPLEMENTED: Mapping[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "lambda_min_clipped": (-math.inf,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_DPM_IMPLEMENTED = {**_IMPLEMENTED, "algorithm_type": tuple(_ALGORITHM_TYPES), "solver_type": ("midpoint", "heun")}

# fields of DPMSolverMultistepScheduler; UniPC, DEIS and others have some of these names for their own algorithms
_DPM_CHOICES = ("solver_order", "solver_type", "lower_order_final", "euler_at_final")

# settings of algorithms that jaxl lacks, or of options that are refused when they are on
_INERT = (
    *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"),
    *("skip_prk_steps", "original_inference_steps", "timestep_scaling", "noise_sampler_seed"),
    *("predict_x0", "disable_corrector", "solver_p"),
)


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise a network was trained with, and what it predicts; field names and defaults are diffusers'."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False

    def alphas_cumprod(self) -> np.ndarray:
        """The signal's share of the variance at each training timestep, [T] float64, falling.

        It is Ho et al. 2020 (arXiv:2006.11239), equation 4. With `rescale_betas_zero_snr` the last one is exactly 0
        (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
        Raises CheckpointError unless every beta lies between 0 and 1.
        """
        total = self.num_train_timesteps
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float64)
        elif self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, total)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, total) ** 2
        elif self.beta_schedule == "squaredcos_cap_v2":
            # Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17, capped as the paper says
            share = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - share[1:] / share[:-1], 0.999)
        else:
            raise CheckpointError(f"beta_schedule={self.beta_schedule!r} is not supported")
        if betas.shape != (total,) or total < 1:
            raise CheckpointError(f"there are {betas.size} betas for num_train_timesteps={total}")
        if not ((betas > 0) & (betas < 1)).all():
            raise CheckpointError(f"betas run from {betas.min()} to {betas.max()}, and must lie between 0 and 1")
        cumprod = np.cumprod(1 - betas)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(cumprod)
            cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return cumprod

    def sigmas(self) -> np.ndarray:
        """Noise over signal at each training timestep, [T] float64, rising and finite.

        At zero terminal SNR the last share of signal is taken as 2^-24, as diffusers does, which makes sigma 4096.
        """
        cumprod = self.alphas_cumprod()
        if self.rescale_betas_zero_snr:
            cumprod[-1] = 2.0**-24
        return np.sqrt((1 - cumprod) / cumprod)


@dataclass(frozen=True)
class SchedulerConfig:
    """A noise schedule and the choices of sampling that come with a checkpoint; field names are diffusers'.

    `scheduler` is one of jaxl's names, or the class name of a diffusers scheduler that jaxl lacks. A field that is None
    was not stated, and each scheduler has its own default for it.
    """

    noise: NoiseSchedule = NoiseSchedule()
    scheduler: str = "euler"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    @classmethod
    def from_json(cls, raw: Json, what: str = "scheduler/scheduler_config.json") -> SchedulerConfig:
        """Read a diffusers scheduler config.

        Raises CheckpointError for a class with another kind of noise schedule, and for a field that would change the
        result and is not known.
        """
        name = raw.get("_class_name")
        if not isinstance(name, str) or name not in _CLASS_DEFAULTS:
            supported = ", ".join(dict.fromkeys(DIFFUSERS_CLASSES.values()))
            raise CheckpointError(f"{what}: scheduler class {name!r} is not supported, only {supported}")
        stated = {key: value for key, value in raw.items() if value is not None}
        choices = {f.name: f.default for f in fields(cls) if f.name not in ("noise", "scheduler")}
        is_dpm = name == "DPMSolverMultistepScheduler"
        if not is_dpm:
            choices = {key: default for key, default in choices.items() if key not in _DPM_CHOICES}
        used = asdict(NoiseSchedule()) | choices
        found = read_fields(
            {**_CLASS_DEFAULTS[name], **stated},
            what=what,
            used=used,
            fixed=_DPM_IMPLEMENTED if is_dpm else _IMPLEMENTED,
            inert=_INERT if is_dpm else (*_INERT, *_DPM_CHOICES, "algorithm_type"),
        )
        if is_dpm:
            scheduler = _ALGORITHM_TYPES[stated.get("algorithm_type", "dpmsolver++")]
        else:
            scheduler = next((ours for ours, theirs in DIFFUSERS_CLASSES.items() if theirs == name), name)
        betas = found["trained_betas"]
        try:
            noise = NoiseSchedule(
                num_train_timesteps=operator.index(found["num_train_timesteps"]),
                beta_start=float(found["beta_start"]),
                beta_end=float(found["beta_end"]),
                beta_schedule=found["beta_schedule"],
                trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
                prediction_type=found["prediction_type"],
                rescale_betas_zero_snr=bool(found["rescale_betas_zero_snr"]),
            )
            noise.alphas_cumprod()
            operator.index(found["steps_offset"])
        except (TypeError, ValueError, CheckpointError) as error:
            raise CheckpointError(f"{what}: {error}") from None
        return cls(
            noise=noise,
            scheduler=scheduler,
            **{key: found[key] for key in choices},
        )
