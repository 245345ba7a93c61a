"""Sigmas and timesteps as others make them in PyTorch's float32, where the last places show in pictures.

A Brownian path is so rough that a millionth of sigma is a thousandth of the unit of noise; and a sigma half way between
those of two timesteps is nearer to one of them by its last places alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from jaxl.diffusion.rows import Table

F = np.float32
RHO = 7.0


def rounded_levels(whole: Table, run: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the sigmas of a schedule's steps, and those at the rows of a run of it and at its end, float32.

    Karras' and exponential ones are made anew. The middle of a step in two rows is that in log sigma, from which
    DPM++ SDE finds the step's ends again.
    """
    levels = _of_steps(whole)
    above = levels[levels > 0]
    for make in (_karras, _exponential):
        made = make(F(above[0]), F(above[-1]), above.size)
        if np.allclose(made, above, rtol=1e-6):
            above = made
    levels = np.append(above, levels[above.size :]).astype(F)
    own = levels[np.abs(np.subtract.outer(_of_steps(run), levels)).argmin(1)]
    if run.used == own.size - 1:
        return levels, own
    with np.errstate(divide="ignore"):
        times = -_log(own)
    middles = times[:-1] + (times[1:] - times[:-1]) * F(0.5)
    first = np.unique(run.steps, return_index=True)[1]
    rows = np.empty(run.used + 1, F)
    rows[np.append(first, -1)] = times
    second = np.setdiff1d(np.arange(run.used), first)
    rows[second] = middles[: second.size]
    return levels, _exp(-rows)


def nearest_places(sigmas: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return where in rising sigmas, `known`, those are that are nearest in the logarithm, as ComfyUI finds them.

    A sigma is made there of its fractional place, and its logarithm is taken again. So half of 999, where many
    schedules have a level, counts as 500.
    """
    logs = np.log(known)
    places = np.interp(np.log(sigmas), logs, np.arange(known.size)).astype(F)
    low, logs = np.floor(places), logs.astype(F)
    share = places - low
    between = (1 - share) * logs[low.astype(int)] + share * logs[np.ceil(places).astype(int)]
    return np.abs(np.subtract.outer(_log(_exp(between)), logs)).argmin(1)


def _of_steps(table: Table) -> np.ndarray:
    """Return the sigmas at which a table's steps begin, and that of its end."""
    first = np.unique(table.steps, return_index=True)[1]
    return (table.sigmas / table.alphas)[np.append(first, -1)]


def _karras(highest: np.float32, lowest: np.float32, n: int) -> np.ndarray:
    start, end = (float(sigma) ** (1 / RHO) for sigma in (highest, lowest))
    roots = F(start) + _even(0.0, 1.0, n) * F(end - start)
    return (roots.astype(np.float64) ** RHO).astype(F)


def _exponential(highest: np.float32, lowest: np.float32, n: int) -> np.ndarray:
    return _exp(_even(math.log(highest), math.log(lowest), n))


def _even(start: float, end: float, n: int) -> np.ndarray:
    """Return what `torch.linspace` does: numbers counted from both ends, product and sum rounded once."""
    step, place = float((F(end) - F(start)) / F(max(n - 1, 1))), np.arange(n)
    return np.where(place < n // 2, float(F(start)) + step * place, float(F(end)) - step * (n - 1 - place)).astype(F)


def _rounded_once(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of float32 whose results are the nearest numbers, as PyTorch's almost always are."""
    return lambda x: function(x.astype(np.float64)).astype(F)


_log, _exp = _rounded_once(np.log), _rounded_once(np.exp)
