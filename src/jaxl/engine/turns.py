"""Whose turn it is: running batches share the devices, and the one goes on whose images are the most urgent together.

What an image suffers is its slowdown: the time from its request to its end, over the time that its rows take. The
fourth power of that is to be small on average, so that one long wait weighs more than many short ones. The generalised
c-mu rule serves whoever's cost grows fastest, for each second that is left to serve (van Mieghem 1995, "Dynamic
Scheduling with Convex Delay Costs: The Generalized c-mu Rule"). A row is run for all images of a batch, so theirs add
up. Whoever waits becomes urgent in the end, whatever else comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

POWER = 4


@dataclass(frozen=True)
class Claim:
    """An image's: seconds since it was asked for, that all its rows take, and that are left of these."""

    waited: float
    total: float
    left: float


def urgency(images: Iterable[Claim]) -> float:
    """Return how fast what the images of a batch suffer grows, for each second that is left of them."""
    return sum(
        ((image.waited + image.left) / image.total) ** (POWER - 1) / (image.total * image.left) for image in images
    )
