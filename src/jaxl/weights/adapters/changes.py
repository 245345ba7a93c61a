"""What a change of a parameter is, whatever its kind, and the simplest: an addition, and another weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxl.weights.adapters.form import Form

Array = np.ndarray

# what adapters change in a model
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
NETWORKS = ("unet", *TEXT_ENCODERS)


class Change(ABC):
    """A change of one parameter: a weight, a bias or a norm's vector. Arrays have torch's layout.

    Changes are applied one after another, each to what those before it left. `kind` is what people call it, and `dim`
    its rank as its file has it, None where it has none. `rank` is the number of columns that `onto` adds to a form, and
    `scales` says whether `onto` makes a `scale_in` or a `scale_out`.
    """

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    def rank(self) -> int:
        return 0

    @property
    def scales(self) -> bool:
        return False

    @property
    def dense(self) -> bool:
        """Whether it has no form, so that it has to be in the weight before a program runs."""
        return type(self).onto is Change.onto

    @property
    def dim(self) -> int | None:
        return None

    @abstractmethod
    def merged(self, weight: Array, strength: float) -> Array:
        """Return a new float32 weight: that of the layer so far, changed as much as `strength` says."""

    def onto(self, form: Form, weight: Callable[[], Array], strength: float) -> Form | None:
        """Return the form after this change on top of `form`, or None if this kind has no form.

        `weight()` is the base weight, without `form`, in float32; it is called only if the form depends on it.
        """
        return None


class Addition(Change):
    """A change that adds `strength` times something of its own to the weight."""

    @abstractmethod
    def delta(self, weight: Array) -> Array:
        """Return what strength 1 adds to this float32 weight, in its shape and in float32."""

    def merged(self, weight: Array, strength: float) -> Array:
        weight = weight.astype(np.float32, copy=False)
        return weight + np.float32(strength) * self.delta(weight)


@dataclass(frozen=True, eq=False)
class Added(Addition):
    """A difference as it is, in the shape of the parameter, times `scale`: of a weight, a bias or a norm."""

    difference: Array
    scale: float = 1.0

    @property
    def kind(self) -> str:
        return "full" if self.difference.ndim > 1 else "vector"

    def delta(self, weight: Array) -> Array:
        return np.float32(self.scale) * self.difference.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Replaced(Change):
    """Another weight in place of the layer's; a strength between 0 and 1 is a way between the two."""

    weight: Array

    @property
    def kind(self) -> str:
        return "replaced"

    def merged(self, weight: Array, strength: float) -> Array:
        weight = weight.astype(np.float32, copy=False)
        return weight + np.float32(strength) * (self.weight.astype(np.float32) - weight)


@dataclass(frozen=True, eq=False)
class Scaled(Change):
    """(IA)3: the weight times `1 + strength * factor`, along its outputs (axis 0) or its inputs (axis 1).

    Liu et al. 2022, arXiv:2205.05638, as LyCORIS stores it: the difference from 1.
    """

    factor: Array
    axis: int

    @property
    def kind(self) -> str:
        return "(IA)3"

    @property
    def scales(self) -> bool:
        return True

    def merged(self, weight: Array, strength: float) -> Array:
        return Form.none(weight.shape).times(self._by(strength), self.axis).weight(weight)

    def onto(self, form: Form, weight: Callable[[], Array], strength: float) -> Form:
        return form.times(self._by(strength), self.axis)

    def _by(self, strength: float) -> Array:
        return 1 + np.float32(strength) * self.factor.astype(np.float32)
