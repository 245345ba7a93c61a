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
) -> int:
    """Return a replica with images of the request's bucket and places for the request's own; else the emptiest.

    This keeps batches full: a call costs the same with one image as with all its places taken.

    images: the request's. of_bucket, totals: for each replica, the images of this bucket and of all, waiting or in the
    making. places: of each one's batch. choices: how many of the fitting replicas, drawn at random, are compared by
    their images; None compares all, which is better as long as the counts are fresh.
    """
    fitting = [i for i, n in enumerate(of_bucket) if 0 < n <= places[i] - images]
    return fewest(fitting, totals, random, choices) if fitting else fewest(range(len(totals)), totals, random)


def fewest(among: Sequence[int], totals: Sequence[int], random: np.random.Generator, choices: int | None = None) -> int:
    """Return the replica with the fewest images, of `choices` at random or of all; any one of equals."""
    drawn = random.choice(len(among), min(choices or len(among), len(among)), replace=False)
    return min((among[i] for i in drawn), key=lambda i: totals[i])
