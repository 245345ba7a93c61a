"""DoRA: a change that also sets the norms of a weight's rows or columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxl.weights.adapters.changes import Addition
from jaxl.weights.adapters.form import Form, along
from jaxl.weights.adapters.low_rank import LowRank

Array = np.ndarray

EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class Decomposed(Addition):
    """DoRA (Liu et al. 2024, arXiv:2402.09353): V = W + `inner`, and W' = V * magnitude / (|V| + epsilon).

    |V| are norms over all axes but `axis`: 0 for the outputs, as in the paper, or 1 for the inputs. Programs differ in
    what a strength s other than 1 means; here it is W + s * (W' - W), as in AUTOMATIC1111's web UI and ComfyUI.
    """

    inner: Addition
    magnitude: Array
    axis: int

    @property
    def kind(self) -> str:
        return f"DoRA of {self.inner.kind}"

    @property
    def dense(self) -> bool:
        return not isinstance(self.inner, LowRank)

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def scales(self) -> bool:
        return isinstance(self.inner, LowRank)

    @property
    def dim(self) -> int | None:
        return self.inner.dim

    def delta(self, weight: Array) -> Array:
        whole = weight + self.inner.delta(weight)
        return whole * along(self._correction(whole), self.axis, whole.ndim) - weight

    def onto(self, form: Form, weight: Callable[[], Array], strength: float) -> Form | None:
        if not isinstance(self.inner, LowRank):
            return None
        now = form.weight(weight())
        correction = self._correction(now + self.inner.delta(now))
        up, down = self.inner.factors()
        up = np.float32(strength * self.inner.scale) * up
        if self.axis == 0:
            up = up * correction[:, None]
        else:
            down = down * along(correction, 1, down.ndim)
        return form.times(1 + np.float32(strength) * (correction - 1), self.axis).plus(up, down)

    def _correction(self, whole: Array) -> Array:
        """Return what each row or column of V is multiplied by."""
        others = tuple(axis for axis in range(whole.ndim) if axis != self.axis)
        norms = np.sqrt(np.square(whole).sum(others))
        return self.magnitude.astype(np.float32).reshape(-1) / (norms + np.float32(EPSILON))
