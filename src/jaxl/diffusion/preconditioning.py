"""What a network takes and gives at each noise level, whatever the scale of the latents.

A network sees latents of unit variance, EDM's after the data was divided by its deviation; a solver may keep others.
"""

from __future__ import annotations

import numpy as np

from jaxl.diffusion.rows import denoiser
from jaxl.diffusion.schedule import NoiseSchedule


def precondition(noise: NoiseSchedule, alphas: np.ndarray, sigmas: np.ndarray) -> dict[str, np.ndarray]:
    """The columns `c_in`, `c_skip` and `c_out` for latents `alphas * image + sigmas * noise` of any scale.

    Karras et al. 2022 (arXiv:2206.00364), table 1. EDM's network predicts the velocity of Salimans and Ho 2022
    (arXiv:2202.00512) on divided data, with the sign turned for `epsilon`.
    """
    data = 1.0 if noise.edm is None else noise.edm.sigma_data
    scale = np.hypot(data * alphas, sigmas)
    kind = noise.prediction_type if noise.edm is None else "v_prediction"
    c_skip, c_out = denoiser(kind, data * alphas / scale, sigmas / scale)
    turned = noise.edm is not None and noise.prediction_type == "epsilon"
    return {"c_in": 1 / scale, "c_skip": data * c_skip / scale, "c_out": -data * c_out if turned else data * c_out}
