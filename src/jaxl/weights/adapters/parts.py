"""The tensors of an adapter's file, sorted by layer, each under the name of its part."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

# A rank of more than this is a mistake, unless the layer itself has as many rows and columns.
MAX_RANK = 1024

# What a key ends with, by the part that the tensor is. PEFT has the adapter's name in it, "default" as a rule.
NAME = r"(?:\.(?!weight|bias)[^.]+)?(?:\.weight)?"
ENDINGS: Mapping[str, str] = {
    "down": rf"\.lora_down\.weight|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight|\.lora_A{NAME}",
    "up": rf"\.lora_up\.weight|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight|\.lora_B{NAME}",
    "up_bias": r"\.lora_B(?:\.[^.]+)?\.bias",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "scale": r"\.scale",
    "dora_scale": r"\.dora_scale",
    "magnitude": rf"\.lora_magnitude_vector{NAME}",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "set_weight": r"\.set_weight",
    "w_norm": r"\.w_norm",
    "b_norm": r"\.b_norm",
    **{name: rf"\.{name}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: rf"\.{name}" for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    "lokr_t2": r"\.lokr_t2",
    **{name: rf"\.{name}(?:\.weight)?" for name in ("a1", "a2", "b1", "b2", "bm")},
    "on_input": r"\.on_input",
    "oft_blocks": r"\.oft_blocks",
    "oft_diag": r"\.oft_diag",
    "rescale": r"\.rescale",
    "oft_r": rf"\.oft_R{NAME}",
    # the marker of OneTrainer's scaled blocks
    "scaled_oft": r"\.(?:oft_R\.)?scaled_oft",
}
KEY = re.compile(f"(?P<stem>.+?)(?:{'|'.join(f'(?P<{part}>{ending})' for part, ending in ENDINGS.items())})")
WEIGHT, ON_INPUT = ".weight", ".on_input"  # (IA)3's factors are a `weight` with the other beside it


class MisfitError(ValueError):
    """The tensors of a layer are of no known kind, or have shapes that are not those of the layer."""


def split_key(key: str) -> tuple[str, str] | None:
    """Return the name of the layer and the part that a key says, None if it is no adapter's."""
    match = KEY.fullmatch(key)
    return (match["stem"], match.lastgroup or "") if match else None


@dataclass(frozen=True, eq=False)
class Parts:
    """The tensors of one layer by their parts, and the layer's shape in torch's layout.

    `keys` are their names in the file. `alpha` is what the file says elsewhere, for a layer without a tensor of it;
    `rooted` says that alpha is divided by the root of the rank.
    """

    shape: tuple[int, ...]
    arrays: Mapping[str, Array]
    keys: Mapping[str, str]
    alpha: float | None = None
    rooted: bool = False

    def number(self, part: str) -> float | None:
        """Return a part that is one number, None where there is none. Raises MisfitError if it is several."""
        if part not in self.arrays:
            return None
        array = self.arrays[part]
        if array.size != 1:
            raise MisfitError(f"{self.keys[part]} has shape {array.shape}, not one number")
        return float(array.astype(np.float32).reshape(()))

    def scale(self, rank: int | None) -> float:
        """Return what a change of this rank is multiplied by: alpha / rank, or what `.scale` says in its place."""
        given, alpha = self.number("scale"), self.number("alpha")
        if given is not None:
            return given
        alpha = self.alpha if alpha is None else alpha
        if alpha is None or not rank:
            return 1.0
        return alpha / math.sqrt(rank) if self.rooted else alpha / rank

    def fitted(self, part: str, *shape: int) -> Array:
        """Return a part in this shape: axes of size 1 may be more or fewer, and those behind the first in one.

        Raises MisfitError for another shape: the same number of values is not enough, as of a transpose.
        """
        array = self[part]
        flat = (shape[0], math.prod(shape[1:])) if shape else ()
        if _squeezed(array.shape) not in (_squeezed(shape), _squeezed(flat)):
            raise MisfitError(f"{self.keys[part]} has shape {array.shape}, not {shape}")
        return array.reshape(shape)

    def matrix(self, part: str) -> Array:
        """Return a part as a matrix: all axes but the first in one. Raises MisfitError if it has a single axis."""
        array = self[part]
        if array.ndim < 2 or not array.size:
            raise MisfitError(f"{self.keys[part]} has shape {array.shape}, not that of a factor")
        return array.reshape(len(array), -1)

    def core(self, part: str, rank: int) -> Array:
        """Return Tucker's core [rank, rank, kh, kw]. Raises MisfitError where the layer is no convolution."""
        if len(self.shape) != 4:
            raise MisfitError(f"{self.keys[part]} is for a convolution, which the layer is not")
        return self.fitted(part, rank, rank, *self.shape[2:])

    def rank(self, part: str) -> int:
        """Return the rows that a part has as a matrix. Raises MisfitError for more than a layer can need."""
        rank = len(self.matrix(part))
        largest = max(MAX_RANK, min(self.shape[0], math.prod(self.shape[1:])))
        if rank > largest:
            raise MisfitError(f"{self.keys[part]} has rank {rank}, but {largest} is the most that is taken here")
        return rank

    def __getitem__(self, part: str) -> Array:
        if part not in self.arrays:
            have = ", ".join(self.keys.values())
            raise MisfitError(f"{part} is missing beside {have}")
        return self.arrays[part]

    def __contains__(self, part: str) -> bool:
        return part in self.arrays


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
