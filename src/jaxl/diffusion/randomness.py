"""How much randomness a sampler adds on its way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Randomness:
    """The settings of stochastic samplers; the defaults add nothing.

    `eta` scales the noise of ancestral and SDE samplers: 1 is the forward process's own. The `s_` settings are the
    churn of Karras et al. 2022 (arXiv:2206.00364, algorithm 2): before a step at a level from `s_tmin` to `s_tmax` the
    level is raised by a share of itself, `s_churn` divided by the number of steps, or 0.41 if that is less. `s_noise`
    scales the noise of either.
    """

    eta: float = 0.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def churned(self, sigmas: np.ndarray, total: int) -> np.ndarray:
        """Each level [n] of a schedule of `total` steps, raised by churn."""
        share = min(self.s_churn / total, math.sqrt(2) - 1)
        return np.where((sigmas >= self.s_tmin) & (sigmas <= self.s_tmax), sigmas * (1 + share), sigmas)
