"""What is measured: one workload for each combination of the options."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PROMPT = "a rocket on a purple background, noto style"


@dataclass(frozen=True)
class Workload:
    """`batch` images at once on each of `devices`, by `steps` of a scheduler."""

    devices: int
    width: int
    height: int
    batch: int
    steps: int
    scheduler: str
    guidance_scale: float

    @property
    def images(self) -> int:
        return self.devices * self.batch

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def __str__(self) -> str:
        return f"{self.images} images of {self.size}, {self.steps} steps of {self.scheduler}, on {self.devices} devices"


@dataclass(frozen=True)
class Stages:
    """Seconds of one call: in all, of the loop with so many `evaluations` of the network, and of decoding all images.

    None is what was not run.
    """

    total: float | None
    denoise: float
    evaluations: int
    decode: float | None

    @property
    def step(self) -> float:
        return self.denoise / self.evaluations


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the least and the most of them."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def combinations(
    *,
    devices: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    steps: Sequence[int],
    schedulers: Sequence[str],
    guidance_scale: float,
) -> list[Workload]:
    """Every combination, those that share programs side by side."""
    return [
        Workload(count, width, height, batch, number, scheduler, guidance_scale)
        for count, (width, height), batch, number, scheduler in itertools.product(
            devices, sizes, batches, steps, schedulers
        )
    ]
