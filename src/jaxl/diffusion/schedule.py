"""What a checkpoint's `scheduler_config.json` says: the noise the network was trained with, and how to sample.

The two are kept apart. `NoiseSchedule` belongs to the network and holds for every scheduler; the rest of
`SchedulerConfig` are choices of sampling, which a user may replace. So a checkpoint saved with a scheduler that jaxl
lacks still loads, and can be sampled with one that jaxl has.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from jaxl.config import Json, read_fields
from jaxl.errors import CheckpointError

# `karras`, `exponential` and `beta` are options of diffusers' classes, so a checkpoint may ask for them
SIGMA_SCHEDULES = ("karras", "exponential", "beta", "sgm_uniform", "uniform", "ays")


@dataclass(frozen=True)
class EDM:
    """Noise of any level, which the network is told by its logarithm (Karras et al. 2022, arXiv:2206.00364, table 1).

    Sampling goes from `sigma_max` to `sigma_min`, spaced by `rho`; `sigma_data` is the deviation of the data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise a network was trained with, and what it predicts; field names and defaults are diffusers'.

    With `edm` there are no betas, and the three fields of them mean nothing.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    edm: EDM | None = None

    def alphas_cumprod(self, dtype: DTypeLike = np.float64) -> np.ndarray:
        """The signal's share of the variance at each training timestep, [T] of `dtype`, falling.

        It is Ho et al. 2020 (arXiv:2006.11239), equation 4. With `rescale_betas_zero_snr` the last one is exactly 0
        (Lin et al. 2023, arXiv:2305.08891, algorithm 1). In float32 it is rounded as diffusers' is.
        Raises CheckpointError unless every beta lies between 0 and 1, and for EDM noise, which has no timesteps.
        """
        total = self.num_train_timesteps
        if self.edm is not None:
            raise CheckpointError(
                "the model was trained with EDM noise, which has no timesteps to count; use `scheduler='euler'`, "
                "'dpm++2m' or another that goes by sigmas"
            )
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
        cumprod = np.cumprod(1 - betas.astype(dtype), dtype=np.float64).astype(dtype)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(cumprod)
            cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return cumprod

    def sigmas(self, dtype: DTypeLike = np.float64) -> np.ndarray:
        """Noise over signal at each training timestep, [T] of `dtype`, rising and finite.

        At zero terminal SNR the last share of signal is taken as 2^-24, as diffusers does, which makes sigma 4096.
        """
        cumprod = self.alphas_cumprod(dtype)
        if self.rescale_betas_zero_snr:
            cumprod[-1] = 2.0**-24
        return np.sqrt((1 - cumprod) / cumprod)


@dataclass(frozen=True)
class SchedulerConfig:
    """A noise schedule and the choices of sampling that come with a checkpoint; field names are diffusers'.

    `scheduler` is one of jaxl's names, or the class name of a diffusers scheduler that jaxl lacks. `sigma_schedule` is
    one of SIGMA_SCHEDULES. A field that is None was not stated, and each scheduler has its own default for it.
    """

    noise: NoiseSchedule = NoiseSchedule()
    scheduler: str = "euler"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    sigma_schedule: str | None = None
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    # from here on options of single solvers, which reach no other: see `SchedulerClass.options`
    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    variance_type: str | None = None
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    @classmethod
    def from_json(cls, raw: Json, what: str = "scheduler/scheduler_config.json") -> SchedulerConfig:
        """Read a diffusers scheduler config.

        Of a class that jaxl lacks, and of one with an option that it lacks, the noise is read alone, for another
        scheduler. Raises CheckpointError for a class with another kind of noise schedule, and for a field that would
        change the result and is not known.
        """
        name = raw.get("_class_name")
        lacking = [option for option in _LACKING if raw.get(option)]
        betas = "beta_start" in raw or "trained_betas" in raw
        if not isinstance(name, str) or (name not in CLASSES and not betas):
            supported = ", ".join(known for known, each in CLASSES.items() if each.names)
            raise CheckpointError(f"{what}: scheduler class {name!r} is not supported, only {supported}")
        kind = CLASSES.get(name, SchedulerClass())
        if name not in CLASSES or lacking:
            known = {*_SHARED, *_FIXED, *_SIGMA_FLAGS, *(f.name for f in fields(NoiseSchedule)), *_OTHER_NOISE}
            raw = {key: value for key, value in raw.items() if key in known}
            kind, name = SchedulerClass(defaults=kind.defaults), " with ".join((name, *lacking))
        stated = {**kind.defaults, **{key: value for key, value in raw.items() if value is not None}}
        choices = {f.name: f.default for f in fields(cls) if f.name in (*_SHARED, *kind.options)}
        noise = asdict(NoiseSchedule()) | (asdict(EDM()) if kind.edm else {})
        used = choices | noise | dict.fromkeys(_SIGMA_FLAGS, False)
        found = read_fields(
            stated,
            what=what,
            used=used,
            fixed={**_FIXED, **kind.fixed},
            inert={*_INERT, *_OPTIONS} - {*used, *kind.fixed},
        )
        if "disable_corrector" in found:
            found["disable_corrector"] = tuple(found["disable_corrector"])
        schedules = [schedule for flag, schedule in _SIGMA_FLAGS.items() if found[flag]]
        if len(schedules) > 1:
            raise CheckpointError(f"{what}: the sigmas cannot be {' and '.join(schedules)} at once; keep one of them")
        if kind.edm and stated.get("sigma_schedule") == "exponential":
            schedules = ["exponential"]
        try:
            config = cls(
                noise=_noise_schedule(found, kind.edm),
                scheduler=kind.own(stated) if kind.own else next(iter(kind.names), name),
                sigma_schedule=schedules[0] if schedules else None,
                **{key: found[key] for key in choices},
            )
            operator.index(config.steps_offset)
        except (TypeError, ValueError, CheckpointError) as error:
            raise CheckpointError(f"{what}: {error}") from None
        return config

    def for_solver(self, name: str) -> SchedulerConfig:
        """The config as solver `name` sees it: without the options that were stated for another kind of solver."""
        own, other = (CLASSES.get(DIFFUSERS_CLASSES.get(each, "")) for each in (self.scheduler, name))
        if own and other and own.options == other.options:
            return self
        return replace(self, **{f.name: f.default for f in fields(self) if f.name in _OPTIONS})


@dataclass(frozen=True)
class SchedulerClass:
    """A class of diffusers whose config jaxl reads.

    `names` are the solvers of jaxl that do what it does, the usual one first; `own` finds the one that a config means.
    `defaults` are those of its fields that differ from SchedulerConfig's, since an absent field means the default of
    the class. `options` are fields of SchedulerConfig that it has for its solver alone, and `fixed` fields of which
    jaxl implements the given values.
    """

    names: tuple[str, ...] = ()
    own: Callable[[Json], str] | None = None
    defaults: Json = field(default_factory=dict)
    options: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    edm: bool = False


def _own_dpm(config: Json) -> str:
    order = "3m" if config.get("solver_order") == 3 else "2m"
    return f"dpm++{order}_sde" if config.get("algorithm_type") == "sde-dpmsolver++" else f"dpm++{order}"


def _own_edm_dpm(config: Json) -> str:
    name = _own_dpm(config)
    return f"edm_{name}" if name == "dpm++2m" else name


def _own_pndm(config: Json) -> str:
    return "plms" if config.get("skip_prk_steps") else "pndm"


_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT_SCHEDULE = {**_LATENT_BETAS, "beta_schedule": "scaled_linear"}

_DPM_OPTIONS = ("solver_order", "solver_type", "lower_order_final", "euler_at_final")
_DPM_FIXED: Mapping[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "heun"),
    "solver_order": (2, 1, 3),
}
_EDM_FIXED: Mapping[str, tuple[Any, ...]] = {
    "sigma_schedule": ("karras", "exponential"),
    "prediction_type": ("epsilon", "v_prediction"),
}
# solver types of other classes mean these classes' own
_DEIS_FIXED: Mapping[str, tuple[Any, ...]] = {
    "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
    "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
    "solver_order": (2, 1, 3),
}
_UNIPC_FIXED: Mapping[str, tuple[Any, ...]] = {
    "solver_type": ("bh2", "bh1", "midpoint", "heun", "logrho"),
    "solver_order": (2, 1, 3),
    "solver_p": (None,),
}
_CONSISTENCY_OPTIONS = ("original_inference_steps", "timestep_scaling")

CLASSES: Mapping[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass(("ddim",), defaults={"clip_sample": True}),
    "DDPMScheduler": SchedulerClass(
        ("ddpm",),
        defaults={"clip_sample": True},
        options=("variance_type",),
        fixed={"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")},
    ),
    "DEISMultistepScheduler": SchedulerClass(
        ("deis",), options=("solver_order", "lower_order_final"), fixed=_DEIS_FIXED
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        ("dpm++2m", "dpm++2m_sde", "dpm++3m", "dpm++3m_sde"), _own_dpm, options=_DPM_OPTIONS, fixed=_DPM_FIXED
    ),
    "DPMSolverSDEScheduler": SchedulerClass(("dpm++sde",), defaults=_LATENT_BETAS),
    "DPMSolverSinglestepScheduler": SchedulerClass(),
    "EDMDPMSolverMultistepScheduler": SchedulerClass(
        ("edm_dpm++2m",), _own_edm_dpm, options=_DPM_OPTIONS, fixed={**_DPM_FIXED, **_EDM_FIXED}, edm=True
    ),
    "EDMEulerScheduler": SchedulerClass(("edm_euler",), fixed=_EDM_FIXED, edm=True),
    "EulerAncestralDiscreteScheduler": SchedulerClass(("euler_a",)),
    "EulerDiscreteScheduler": SchedulerClass(("euler",)),
    "HeunDiscreteScheduler": SchedulerClass(("heun",), defaults=_LATENT_BETAS),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(("dpm2_a",), defaults=_LATENT_BETAS),
    "KDPM2DiscreteScheduler": SchedulerClass(("dpm2",), defaults=_LATENT_BETAS),
    "LCMScheduler": SchedulerClass(("lcm",), defaults=_LATENT_SCHEDULE, options=_CONSISTENCY_OPTIONS),
    "LMSDiscreteScheduler": SchedulerClass(("lms",)),
    "PNDMScheduler": SchedulerClass(("plms", "pndm"), _own_pndm),
    "TCDScheduler": SchedulerClass(("tcd",), defaults=_LATENT_SCHEDULE, options=_CONSISTENCY_OPTIONS),
    "UniPCMultistepScheduler": SchedulerClass(
        ("unipc",),
        options=("solver_order", "solver_type", "lower_order_final", "predict_x0", "disable_corrector"),
        fixed=_UNIPC_FIXED,
    ),
}

# the class of diffusers behind each of jaxl's solvers
DIFFUSERS_CLASSES: Mapping[str, str] = {name: known for known, each in CLASSES.items() for name in each.names}

# fields that classes share, so that those in a file of one class also hold for others
_SHARED = ("timestep_spacing", "steps_offset", "final_sigmas_type", "set_alpha_to_one", "clip_sample")
_SIGMA_FLAGS: Mapping[str, str] = {f"use_{name}_sigmas": name for name in ("karras", "exponential", "beta")}
_OPTIONS = {option for each in CLASSES.values() for option in (*each.options, *each.fixed)} - {"prediction_type"}

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "lambda_min_clipped": (-math.inf,),
}

# options of sampling that jaxl lacks, so that the checkpoint's own scheduler cannot be run
_LACKING = ("use_lu_lambdas",)
# what makes another noise of the betas, and is refused
_OTHER_NOISE = ("use_flow_sigmas",)

# settings of algorithms that jaxl lacks, or of options that are refused when they are on
_INERT = (
    *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"),
    *("skip_prk_steps", "noise_sampler_seed"),
)


def _noise_schedule(found: Json, edm: bool) -> NoiseSchedule:
    """The noise schedule of these fields. Raises CheckpointError, TypeError or ValueError where they make none."""
    betas = found["trained_betas"]
    noise = NoiseSchedule(
        num_train_timesteps=operator.index(found["num_train_timesteps"]),
        beta_start=float(found["beta_start"]),
        beta_end=float(found["beta_end"]),
        beta_schedule=found["beta_schedule"],
        trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
        prediction_type=found["prediction_type"],
        rescale_betas_zero_snr=bool(found["rescale_betas_zero_snr"]),
        edm=EDM(**{f.name: float(found[f.name]) for f in fields(EDM)}) if edm else None,
    )
    if noise.edm is None:
        noise.alphas_cumprod()
    elif not 0 < noise.edm.sigma_min < noise.edm.sigma_max < math.inf or min(noise.edm.sigma_data, noise.edm.rho) <= 0:
        raise CheckpointError(f"{noise.edm} is no range of noise")
    return noise
