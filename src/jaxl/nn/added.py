"""What ControlNets and their kin add to a U-Net on its way, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from jax import Array

from jaxl.nn.lllite import Nudges


@dataclass(frozen=True)
class Added:
    """What is added in one evaluation; each [B, h, w, C].

    `skips`: to the skips, in their order, once the way down is done, so that they alone have it. `middle`: to what
    leaves the middle. `blocks`: to each block on the way down, as T2I-Adapters do, behind its last layer if it has
    transformers, else behind all of it, where the skip has it too; and, if there is one more, to the middle. `inputs`:
    what changes the inputs of layers of attention, by the paths of their parameters.
    """

    skips: Sequence[Array] = ()
    middle: Array | None = None
    blocks: Sequence[Array] = ()
    inputs: Mapping[str, Nudges] = field(default_factory=dict)

    def __add__(self, more: Added) -> Added:
        return Added(
            [_sum(a, b) for a, b in zip_longest(self.skips, more.skips)],
            _sum(self.middle, more.middle),
            [_sum(a, b) for a, b in zip_longest(self.blocks, more.blocks)],
            {path: (*self.inputs.get(path, ()), *more.inputs.get(path, ())) for path in {**self.inputs, **more.inputs}},
        )

    def within(self, path: str) -> dict[str, Nudges]:
        """Return what there is in `inputs` below a path, by the rest of its own."""
        inside = f"{path}."
        return {layer.removeprefix(inside): own for layer, own in self.inputs.items() if layer.startswith(inside)}


NOTHING = Added()


def both(own: Array, more: Array | None) -> Array:
    """Return the sum, where there is something to add."""
    return own if more is None else own + more


def _sum(own: Any, more: Array | None) -> Any:
    return more if own is None else both(own, more)
