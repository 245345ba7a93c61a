"""Trials of eight bits: the same pictures with any layers of the U-Net rounded, all by one program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxl.call.inputs import Inputs
from jaxl.call.plan import Plan, Segment
from jaxl.diffusion.loop import Slots
from jaxl.nn.layers import Params
from jaxl.run.programs import ADVANCE, DECODE, START, Programs
from jaxl.run.sharding import replicated
from jaxl.weights.sensitivity import Group

ROWS = (0.1, 0.5, 0.9)  # where in the schedule single rows are tried, as shares of it

Rounding = Callable[[Collection[str]], Params]
Tried = tuple[Callable[..., Slots], Slots, Any]  # the program of a row, the slots before it, and what it is told


class Trials:
    """Draws the pictures of some inputs again and again, with other layers rounded."""

    def __init__(self, programs: Programs, params: Params, inputs: Sequence[Inputs], rounding: Rounding):
        """`programs` are of the tree that `rounding` makes: the U-Net's parameters in which those layers are rounded.

        `params` are all components'. The inputs are of one round each, and without controls and adapters.
        """
        self.programs, self.vae, self.rounding = programs, params["vae"], rounding
        self.inputs = [(each.plan, each.beginning(), each.conditionings()) for each in inputs]
        whole = replicated(programs.target.mesh)
        self._error = jax.jit(_squared, out_shardings=whole)
        self._copy = jax.jit(partial(jax.tree.map, jnp.copy))
        self.exact = self._pictures(())

    def errors(self, groups: Sequence[Group], tell: Callable[[int, int], None] | None = None) -> dict[Group, float]:
        """Return what each group of layers, rounded alone, does to the latents in some rows: the sum of squares.

        `tell` hears the number of groups that are done, and that of all.
        """
        rows, exact = self._rows(), self.rounding(())
        wanted = [self._row(exact, row).latents for row in rows]
        found: dict[Group, float] = {}
        for group in groups:
            unet = self.rounding(group)
            sums = [self._error(self._row(unet, row).latents, own) for row, own in zip(rows, wanted, strict=True)]
            found[group] = float(sum(np.asarray(each).sum() for each in sums))
            if tell is not None:
                tell(len(found), len(groups))
        return found

    def psnr(self, rounded: Collection[str]) -> float:
        """Return the median of the pictures' peak signal-to-noise ratios in dB, with some layers rounded.

        It is infinite for equal pictures, and not a number where one is not finite.
        """
        pairs = zip(self.inputs, self.exact, self._pictures(rounded), strict=True)
        means = [
            np.asarray(self._error(a, b))[: plan.batch] / np.prod(a.shape[1:], dtype=float)
            for (plan, *_), a, b in pairs
        ]
        with np.errstate(divide="ignore"):
            return float(np.median(-10 * np.log10(np.concatenate(means))))

    def _pictures(self, rounded: Collection[str]) -> list[jax.Array]:
        unet, found = self.rounding(rounded), []
        for plan, beginning, told in self.inputs:
            slots = self.programs.get(START, plan.bucket)(beginning)
            for segment, cond in zip(plan.segments, told, strict=True):
                run = self._advance(plan, segment)
                slots = run(unet, slots, cond, segment.rows)
            found.append(self.programs.get(DECODE, plan.bucket)(self.vae, slots.latents)[0])
        return found

    def _advance(self, plan: Plan, segment: Segment) -> Callable[..., Slots]:
        """Return what runs rows of a segment: a function of a U-Net, slots, what is told of them, and a number."""
        run, given = self.programs.get(ADVANCE, plan.bucket_of(segment)), self.programs.none_given(plan.bucket)
        return lambda unet, slots, cond, rows: run(unet, slots, cond, np.int32(rows), (), given)

    def _rows(self) -> list[Tried]:
        """Return a row of the exact pictures of each of the first inputs, at ROWS."""
        return [self._before(part, *inputs) for part, inputs in zip(ROWS, cycle(self.inputs), strict=False)]

    def _before(self, part: float, plan: Plan, beginning: Any, told: Sequence[Any]) -> Tried:
        unet, left = self.rounding(()), int(part * plan.count)
        slots = self.programs.get(START, plan.bucket)(beginning)
        for segment, cond in zip(plan.segments, told, strict=True):
            run = self._advance(plan, segment)
            if left < segment.rows:
                break
            slots, left = run(unet, slots, cond, segment.rows), left - segment.rows
        return run, run(unet, slots, cond, left), cond

    def _row(self, unet: Params, row: Tried) -> Slots:
        run, slots, cond = row
        return run(unet, self._copy(slots), cond, 1)  # which takes the slots it is given


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.square(a - b).sum((1, 2, 3))
