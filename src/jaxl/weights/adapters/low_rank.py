"""Changes of low rank: LoRA and LoCon, with or without Tucker's core, and GLoRA, which depends on the weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxl.weights.adapters.changes import Addition
from jaxl.weights.adapters.form import Form

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LowRank(Addition):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): `scale * up @ down` is added, `up` [out, r] and `down` [r, in, ...].

    On convolutions it is called LoCon; with Tucker's core `mid` [r, r, kh, kw], `down` is [r, in].
    """

    down: Array
    up: Array
    scale: float
    mid: Array | None = None

    @property
    def kind(self) -> str:
        return "LoRA" if self.mid is None and self.down.ndim == 2 else "LoCon"

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def dim(self) -> int:
        return len(self.down)

    def factors(self) -> tuple[Array, Array]:
        """Return `up` [out, r] and `down` [r, in] or [r, in, kh, kw] in float32, without the scale."""
        up, down = self.up.astype(np.float32), self.down.astype(np.float32)
        if self.mid is not None:
            down = np.einsum("mnkl,nj->mjkl", self.mid.astype(np.float32), down, optimize=True)
        return up, down

    def delta(self, weight: Array) -> Array:
        up, down = self.factors()
        return ((np.float32(self.scale) * up) @ down.reshape(len(down), -1)).reshape(weight.shape)

    def onto(self, form: Form, weight: Callable[[], Array], strength: float) -> Form:
        up, down = self.factors()
        return form.plus(np.float32(strength * self.scale) * up, down)


@dataclass(frozen=True, eq=False)
class GLoRA(Addition):
    """GLoRA (Chavan et al. 2023, arXiv:2306.07967) without its vectors: `scale * (W A + B)` is added.

    A = `first @ second`, [in, q] and [q, in], mixes the inputs of the weight W so far; in a convolution it does so at
    each place of the kernel. B is that of a LoRA, `up` [out, r] and `down` [r, in, ...].
    """

    first: Array
    second: Array
    up: Array
    down: Array
    scale: float

    @property
    def kind(self) -> str:
        return "GLoRA"

    @property
    def rank(self) -> int:
        return len(self.second) * math.prod(self.down.shape[2:]) + len(self.down)

    @property
    def dim(self) -> int:
        return len(self.down)

    def factors(self, weight: Array) -> tuple[Array, Array]:
        """Return `up` [out, rank] and `down` [rank, in, ...] in float32 for this weight, without the scale."""
        first, second, up, down = (each.astype(np.float32) for each in (self.first, self.second, self.up, self.down))
        kernel = weight.shape[2:]
        places = math.prod(kernel)
        mixed = np.tensordot(weight.astype(np.float32, copy=False), first, axes=(1, 0))  # [out, kh, kw, q]
        # a column for each place of the kernel and each q, which is zero at other places
        spread = np.einsum("kl,qi->kqil", np.eye(places, dtype=np.float32), second)
        up = np.concatenate([mixed.reshape(len(weight), -1), up], axis=1)
        return up, np.concatenate([spread.reshape(-1, len(first), *kernel), down])

    def delta(self, weight: Array) -> Array:
        up, down = self.factors(weight)
        return ((np.float32(self.scale) * up) @ down.reshape(len(down), -1)).reshape(weight.shape)

    def onto(self, form: Form, weight: Callable[[], Array], strength: float) -> Form:
        up, down = self.factors(form.weight(weight()))
        return form.plus(np.float32(strength * self.scale) * up, down)
