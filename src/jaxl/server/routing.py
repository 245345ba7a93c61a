"""The choice of a replica for a request, for `jaxl.server.ray` and the simulation in `benchmarks/routing`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bucket_affine(
    images: int,
    of_bucket: Sequence[int],
    totals: Sequence[int],
    places: Sequence[int],
    random: np.random.Generator,
    choices: int | None = None,
    delays: Sequence[float] = (),
) -> int:
    """Return a replica with images of the request's bucket and places for the request's own; else the emptiest.

    This keeps batches full: a call costs the same with one image as with all its places taken. `delays` decide between
    replicas that have places, and between those that are equally full: no request is made to wait for a place by them.

    images: the request's. of_bucket, totals: for each replica, the images of this bucket and of all, waiting or in the
    making. places: of each one's batch. choices: how many of the fitting replicas, drawn at random, are compared by
    their images; None compares all, which is better as long as the counts are fresh. delays: for each replica, the
    images that it could draw before it begins with these, because it has to read files first; none without any.
    """
    costs = [total + delay for total, delay in zip(totals, delays, strict=True)] if delays else totals
    fitting = [i for i, n in enumerate(of_bucket) if 0 < n <= places[i] - images]
    if fitting:
        return fewest(fitting, costs, random, choices)
    least = min(totals)
    return fewest([i for i, n in enumerate(totals) if n == least or n <= places[i] - images], costs, random)


def fewest(
    among: Sequence[int], totals: Sequence[float], random: np.random.Generator, choices: int | None = None
) -> int:
    """Return the replica with the fewest images, of `choices` at random or of all; any one of equals."""
    drawn = random.choice(len(among), min(choices or len(among), len(among)), replace=False)
    return min((among[i] for i in drawn), key=lambda i: totals[i])
