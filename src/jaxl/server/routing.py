"""Which replica draws a request: what `jaxl.server.ray` does and `benchmarks/routing/simulation.py` simulates."""

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
    """A replica that has images of the request's bucket, and places free there for its own; else the emptiest.

    So batches are full: a call costs the same with one image as with all its places taken.

    images: of the request. of_bucket, totals: for each replica, the images of this bucket and all there are, waiting or
    in the making. places: of a batch of each. choices: of several that fit, the one with fewer images of so many at
    random; None is of all, which is better as long as the counts are fresh.
    """
    fitting = [i for i, n in enumerate(of_bucket) if 0 < n <= places[i] - images]
    return fewest(fitting, totals, random, choices) if fitting else fewest(range(len(totals)), totals, random)


def fewest(among: Sequence[int], totals: Sequence[int], random: np.random.Generator, choices: int | None = None) -> int:
    """Of `choices` replicas at random, or of all, the one with the fewest images; of equals any."""
    drawn = random.choice(len(among), min(choices or len(among), len(among)), replace=False)
    return min((among[i] for i in drawn), key=lambda i: totals[i])
