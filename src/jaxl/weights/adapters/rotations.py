"""Changes that rotate a weight's outputs or inputs, block by block: OFT, BOFT and OFTv2.

At strength s a rotation R is `I + s (R - I)`, as sd-scripts, LyCORIS and AUTOMATIC1111's web UI have it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jaxl.weights.adapters.changes import Change
from jaxl.weights.adapters.form import along
from jaxl.weights.adapters.parts import MisfitError, Parts

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class OFT(Change):
    """Diagonal OFT (Qiu et al. 2023, arXiv:2306.07280): each block of outputs is multiplied by R^T, R [n, b, b].

    `blocks` are made into rotations by Cayley's transform; with `whole` they are rotations already, as in old files of
    LyCORIS. `limit` bounds the norm of what is transformed. `rescale` [out] multiplies the outputs afterwards.
    """

    blocks: Array
    limit: float | None = None
    rescale: Array | None = None
    whole: bool = False

    @property
    def kind(self) -> str:
        return "OFT"

    def merged(self, weight: Array, strength: float) -> Array:
        rotations = self.blocks.astype(np.float32) if self.whole else _cayley(self.blocks, self.limit)
        turned = weight.astype(np.float32, copy=False).reshape(*rotations.shape[:2], -1)
        turned = np.matmul(_at(rotations, strength).swapaxes(-1, -2), turned)
        return _rescaled(turned.reshape(weight.shape), self.rescale, strength)


@dataclass(frozen=True, eq=False)
class BOFT(Change):
    """BOFT (Liu et al. 2023, arXiv:2311.06243): m stages of rotations, one after the other; `blocks` are [m, n, b, b].

    As in a fast Fourier transform, stage i pairs outputs that are 2^i * b / 2 apart; a block takes b / 2 pairs that
    follow each other, and is multiplied by R. The other fields are as in `OFT`.
    """

    blocks: Array
    limit: float | None = None
    rescale: Array | None = None

    @property
    def kind(self) -> str:
        return "BOFT"

    def merged(self, weight: Array, strength: float) -> Array:
        rotations = _at(_cayley(self.blocks, self.limit), strength)
        stages, count, size, _ = rotations.shape
        turned = weight.astype(np.float32, copy=False).reshape(len(weight), -1)
        for i in range(stages):
            apart = 2**i * (size // 2)
            pairs = turned.reshape(-1, 2, apart, turned.shape[1]).swapaxes(1, 2)
            stage = np.matmul(rotations[i], pairs.reshape(count, size, -1))
            turned = stage.reshape(pairs.shape).swapaxes(1, 2).reshape(turned.shape)
        return _rescaled(turned.reshape(weight.shape), self.rescale, strength)


@dataclass(frozen=True, eq=False)
class OFTv2(Change):
    """OFT of the inputs (Qiu et al. 2025, arXiv:2506.19847), as PEFT and OneTrainer write it.

    `triangles` [n, b (b - 1) / 2] are what is above the diagonal of antisymmetric matrices Q, one for each block of b
    inputs, or a single one for all of them. The rotation is Cayley's, in the five terms of Neumann's series with which
    it is trained. `factor` multiplies Q.
    """

    triangles: Array
    size: int
    factor: float = 1.0

    @property
    def kind(self) -> str:
        return "OFTv2"

    def merged(self, weight: Array, strength: float) -> Array:
        rows, columns = np.triu_indices(self.size, 1)
        q = np.zeros((len(self.triangles), self.size, self.size), np.float32)
        q[:, rows, columns] = self.triangles.astype(np.float32) * np.float32(self.factor)
        q -= q.swapaxes(1, 2)
        square = q @ q
        rotations = np.eye(self.size, dtype=np.float32) + 2 * (q + square + square @ q) + square @ square
        blocks = weight.astype(np.float32, copy=False).reshape(len(weight), -1, self.size).swapaxes(0, 1)
        turned = np.matmul(blocks, _at(rotations, strength).swapaxes(1, 2))
        return turned.swapaxes(0, 1).reshape(weight.shape)


def read_blocks(parts: Parts) -> OFT | BOFT:
    """Read the blocks of OFT [n, b, b] or of BOFT [m, n, b, b]. Raises MisfitError."""
    blocks = parts["oft_blocks"]
    _check_size(parts, "oft_blocks")
    if blocks.ndim == 3:
        return OFT(blocks, _limit(parts), _rescale(parts))
    stages, _, size = blocks.shape[:3]
    if size % 2 or not stages or parts.shape[0] % (2**stages * (size // 2)):
        raise MisfitError(f"{parts.keys['oft_blocks']} has shape {blocks.shape}, not that of a butterfly")
    return BOFT(blocks, _limit(parts), _rescale(parts))


def read_rotations(parts: Parts) -> OFT:
    """Read OFT's rotations themselves. Raises MisfitError."""
    if parts["oft_diag"].ndim != 3:
        raise MisfitError(f"{parts.keys['oft_diag']} has shape {parts['oft_diag'].shape}, not that of blocks")
    _check_size(parts, "oft_diag")
    return OFT(parts["oft_diag"], None, _rescale(parts), whole=True)


def read_input_blocks(parts: Parts) -> OFTv2:
    """Read OFTv2's triangles. Raises MisfitError."""
    triangles, columns = parts["oft_r"], math.prod(parts.shape[1:])
    size = (1 + math.isqrt(1 + 8 * triangles.shape[-1])) // 2 if triangles.ndim == 2 else 0
    if size < 2 or size * (size - 1) // 2 != triangles.shape[1] or columns % size:
        raise MisfitError(f"{parts.keys['oft_r']} has shape {triangles.shape}, not that of blocks of {columns} inputs")
    if len(triangles) not in (1, columns // size):
        raise MisfitError(f"{parts.keys['oft_r']} has {len(triangles)} blocks of {size}, but {columns} inputs")
    return OFTv2(triangles, size, 1 / (2 * math.sqrt(size - 1)) if "scaled_oft" in parts else 1.0)


def _check_size(parts: Parts, part: str) -> None:
    shape = parts[part].shape
    if len(shape) not in (3, 4) or shape[-1] != shape[-2] or shape[-3] * shape[-1] != parts.shape[0]:
        raise MisfitError(f"{parts.keys[part]} has shape {shape}, not that of blocks of {parts.shape[0]} outputs")


def _limit(parts: Parts) -> float | None:
    """Return the bound of the norm: alpha for each output. Files of what was not bounded have 0."""
    alpha = parts.number("alpha")
    return alpha * parts.shape[0] if alpha else None


def _rescale(parts: Parts) -> Array | None:
    return parts.fitted("rescale", parts.shape[0]) if "rescale" in parts else None


def _cayley(blocks: Array, limit: float | None) -> Array:
    """Return rotations for any matrices B: (I + Q) (I - Q)^-1 with Q = B - B^T, as small as `limit` says together."""
    blocks = blocks.astype(np.float32)
    q = blocks - blocks.swapaxes(-1, -2)
    if limit is not None:
        norm = float(np.linalg.norm(q))
        q *= np.float32((min(norm, limit) + 1e-8) / (norm + 1e-8))
    unit = np.eye(q.shape[-1], dtype=np.float32)
    return np.matmul(unit + q, np.linalg.inv(unit - q))


def _at(rotations: Array, strength: float) -> Array:
    unit = np.eye(rotations.shape[-1], dtype=np.float32)
    return unit + np.float32(strength) * (rotations - unit)


def _rescaled(weight: Array, rescale: Array | None, strength: float) -> Array:
    """Return the weight with its outputs rescaled; strength 0 does nothing, which other programs do not agree on."""
    if rescale is None:
        return weight
    factor = 1 + np.float32(strength) * (rescale.astype(np.float32) - 1)
    return weight * along(factor, 0, weight.ndim)
