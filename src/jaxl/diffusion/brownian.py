"""Brownian paths as torchsde draws them, for the noise of SDE samplers as k-diffusion has it, on the host."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxl.diffusion.other_noise import SOURCES, Numbers, image_of

F = np.float32
DIGITS = 6  # that times are rounded to: torchsde's tolerance of 1e-6
POOL = 24  # words of NumPy's SeedSequence, as torchsde asks for


@dataclass(frozen=True)
class Node:
    """An interval of a path, and the values at its ends and in its middle, from which both halves are drawn.

    `key` and `depth` say where it is in the tree: its halves are 2 `key` and 2 `key` + 1 of the next depth.
    """

    key: int
    depth: int
    times: tuple[float, float, float]
    values: tuple[np.ndarray, np.ndarray, np.ndarray]


class BrownianPath:
    """A Brownian path over sigma, from `lowest` to `highest`: torchsde's `BrownianTree` (Li et al. 2020, 2001.01328).

    An interval is halved, and its middle drawn by a generator of its own, until a time is met; so the path does not
    depend on what is asked of it. Values [n] are within 1e-5 of torchsde's. It keeps the nodes that lead to the last
    time asked for, about 25 arrays; going down, no node is drawn twice.
    """

    def __init__(self, numbers: Numbers, lowest: float, highest: float):
        self._numbers = numbers
        whole = self._normals((), 3) * F(math.sqrt(highest - lowest))
        ends = round(lowest, DIGITS), round(highest, DIGITS)
        self._nodes = [self._node(0, 0, *ends, np.zeros_like(whole), whole)]

    def __call__(self, sigma: float) -> np.ndarray:
        """Return the path's value at a sigma, less that at the lowest one."""
        time = round(float(F(sigma)), DIGITS)
        start, *_, end = self._nodes[0].times
        if not start < time < end:
            return self._nodes[0].values[0 if time <= start else 2]
        while not self._nodes[-1].times[0] < time < self._nodes[-1].times[2]:
            self._nodes.pop()
        while True:
            node = self._nodes[-1]
            (start, middle, end), (first, centre, last) = node.times, node.values
            if time == middle:
                return centre
            if time < middle:
                self._nodes.append(self._node(2 * node.key, node.depth + 1, start, middle, first, centre))
            else:
                self._nodes.append(self._node(2 * node.key + 1, node.depth + 1, middle, end, centre, last))

    def _node(self, key: int, depth: int, start: float, end: float, first: np.ndarray, last: np.ndarray) -> Node:
        middle = round(0.5 * (end + start), DIGITS)
        before, after, span = middle - start, end - middle, end - start
        drawn = self._normals((key, depth), 4)
        drawn *= F(math.sqrt(before * after / span))
        centre = last - first
        centre *= F(before / span)
        centre += first
        centre += drawn
        return Node(key, depth, (start, middle, end), (first, centre, last))

    def _normals(self, place: tuple[int, ...], words: int) -> np.ndarray:
        """Draw the unit normals of a place in the tree, whose generator has a seed of its own."""
        numbers = self._numbers
        seed = np.random.SeedSequence(numbers.seed, spawn_key=place, pool_size=POOL).generate_state(words)[0]
        return numbers.draw(SOURCES[numbers.source](int(seed), False))


@dataclass(frozen=True)
class BrownianNoise:
    """The noise of the steps of an image by a path of its own, of these numbers, which spans `lowest` to `highest`.

    `steps` are pairs of sigmas: where each step begins, and where it ends.
    """

    numbers: Numbers
    lowest: float
    highest: float
    steps: Sequence[tuple[float, float]]

    def draws(self) -> Iterator[np.ndarray]:
        """Draw the unit noise of each step, float32 [H, W, C]: its increment of the path, as k-diffusion turns it."""
        path = BrownianPath(self.numbers, self.lowest, self.highest)
        for here, there in self.steps:
            start, end = path(here), path(there)  # in this order, as the path is kept for what lies below
            yield image_of((end - start) / F(math.sqrt(F(here) - F(there))), self.numbers.shape)
