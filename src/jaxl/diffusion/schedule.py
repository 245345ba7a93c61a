"""What a checkpoint says of sampling: the noise its network was trained with, and which choices come with it.

The two are kept apart. `NoiseSchedule` belongs to the network and holds for every scheduler; the rest of
`SchedulerConfig` are choices of sampling, which a user may replace. So a checkpoint saved with a scheduler that jaxl
lacks still loads, and can be sampled with one that jaxl has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from jaxl.errors import CheckpointError


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
class Flow:
    """A straight path from noise to image, whose velocity the network predicts (Liu et al. 2022, arXiv:2209.03003).

    Latents are `(1 - sigma) * image + sigma * noise`, and the network is told sigma times the number of timesteps.
    `shift` moves the levels of a run towards noise (Esser et al. 2024, arXiv:2403.03206, equation 23).
    """

    shift: float = 1.0

    def shifted(self, sigmas: np.ndarray) -> np.ndarray:
        """Return the shares of noise, from 0 to 1, moved towards 1."""
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise a network was trained with, and what it predicts; field names and defaults are diffusers'.

    With `edm` or `flow` there are no betas, and the three fields of them mean nothing.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    edm: EDM | None = None
    flow: Flow | None = None

    @property
    def kind(self) -> str:
        """Where its levels come from: "betas", "edm" or "flow"."""
        return "edm" if self.edm is not None else "flow" if self.flow is not None else "betas"

    def alphas(self, sigmas: np.ndarray) -> np.ndarray:
        """The image's scale in latents that have the noise's scale `sigmas`: 1, or on a straight path `1 - sigmas`."""
        return np.ones_like(sigmas) if self.flow is None else 1 - sigmas

    def alphas_cumprod(self, dtype: DTypeLike = np.float64) -> np.ndarray:
        """The signal's share of the variance at each training timestep, [T] of `dtype`, falling.

        It is Ho et al. 2020 (arXiv:2006.11239), equation 4. With `rescale_betas_zero_snr` the last one is exactly 0
        (Lin et al. 2023, arXiv:2305.08891, algorithm 1). In float32 it is rounded as diffusers' is.
        Raises CheckpointError unless every beta lies between 0 and 1, and for EDM noise and straight paths, which have
        none.
        """
        total = self.num_train_timesteps
        if self.flow is not None:
            raise CheckpointError(
                "the model was trained on straight paths, which have no betas; use `scheduler='euler'` or another that "
                "goes by sigmas"
            )
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

        At zero terminal SNR the last share of signal is taken as 2^-24, as diffusers does, which makes sigma 4096. On a
        straight path they are the shares of noise.
        """
        if self.flow is not None:
            return self.flow.shifted(np.arange(1, self.num_train_timesteps + 1) / self.num_train_timesteps).astype(
                dtype
            )
        cumprod = self.alphas_cumprod(dtype)
        if self.rescale_betas_zero_snr:
            cumprod[-1] = 2.0**-24
        return np.sqrt((1 - cumprod) / cumprod)


@dataclass(frozen=True)
class SchedulerConfig:
    """A noise schedule and the choices of sampling that come with a checkpoint; field names are diffusers'.

    `scheduler` is one of jaxl's names, or the class name of a diffusers scheduler that jaxl lacks. `sigma_schedule` is
    the name of one. A field that is None was not stated, and each scheduler has its own default for it.
    """

    noise: NoiseSchedule = NoiseSchedule()
    scheduler: str = "euler"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    sigma_schedule: str | None = None
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    # from here on options of single solvers, which reach no other: see `DiffusersClass.options`
    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    variance_type: str | None = None
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
