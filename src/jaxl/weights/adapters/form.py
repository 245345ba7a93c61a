"""The form in which a program applies adapters to a layer while it runs, without another weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Form:
    """What a program adds to a layer: its weight W becomes `W * scale_in * scale_out + up @ down`.

    W is in torch's layout, [out, in] or [out, in, kh, kw]. All are float32: `down` [r, in] or [r, in, kh, kw], `up`
    [out, r], `scale_in` [in] and `scale_out` [out], None where nothing is scaled. r may be 0.
    """

    down: Array
    up: Array
    scale_in: Array | None = None
    scale_out: Array | None = None

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Form:
        """Return the form that leaves a weight of this shape as it is."""
        return cls(np.zeros((0, *shape[1:]), np.float32), np.zeros((shape[0], 0), np.float32))

    @property
    def rank(self) -> int:
        return len(self.down)

    def weight(self, weight: Array) -> Array:
        """Return the weight that the layer has in effect, a new float32 array."""
        scaled = np.array(weight, np.float32)
        if self.scale_in is not None:
            scaled *= along(self.scale_in, 1, scaled.ndim)
        if self.scale_out is not None:
            scaled *= along(self.scale_out, 0, scaled.ndim)
        return scaled + np.tensordot(self.up, self.down, axes=1)

    def plus(self, up: Array, down: Array) -> Form:
        """Return the form with `up @ down` added: [out, r] and [r, in, ...]."""
        joined = [
            np.concatenate(pair, axis, dtype=np.float32) for pair, axis in (((self.down, down), 0), ((self.up, up), 1))
        ]
        return replace(self, down=joined[0], up=joined[1])

    def times(self, factor: Array, axis: int) -> Form:
        """Return the form whose weight is this one's times `factor`, along the outputs (axis 0) or inputs (axis 1)."""
        factor = factor.astype(np.float32)
        if axis == 0:
            return replace(self, scale_out=_product(self.scale_out, factor), up=self.up * factor[:, None])
        return replace(
            self, scale_in=_product(self.scale_in, factor), down=self.down * along(factor, 1, self.down.ndim)
        )


def along(vector: Array, axis: int, ndim: int) -> Array:
    """Return a vector as an array of `ndim` axes that multiplies along one of them."""
    return vector.reshape([-1 if each == axis else 1 for each in range(ndim)])


def _product(scale: Array | None, factor: Array) -> Array:
    return factor if scale is None else scale * factor
