"""Which replica draws a request."""

import numpy as np
import pytest

from jaxl.server.routing import bucket_affine, fewest

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("images", "of_bucket", "totals", "chosen"),
    [
        (1, [0, 1, 2, 0], [0, 1, 2, 0], {1}),  # fewest of those that draw this size, not one that is idle
        (3, [0, 1, 2, 0], [1, 1, 2, 0], {1}),
        (4, [0, 1, 2, 0], [1, 1, 2, 0], {3}),
        (1, [0, 4, 4, 0], [2, 4, 4, 2], {0, 3}),
        (1, [0, 0, 5, 0], [0, 0, 5, 0], {0, 1, 3}),
        (1, [1, 0, 0, 0], [1, 2, 2, 2], {0}),  # that has one place
    ],
)
def test_bucket_affine(images: int, of_bucket: list[int], totals: list[int], chosen: set[int]) -> None:
    places = [4, 4, 4, 4]
    assert {bucket_affine(images, of_bucket, totals, places, RANDOM) for _ in range(100)} == chosen


@pytest.mark.parametrize(
    ("images", "of_bucket", "totals", "delays", "chosen"),
    [
        (1, [0, 0, 0, 0], [0, 0, 0, 0], [4, 0, 4, 4], {1}),
        (1, [1, 2, 0, 0], [1, 2, 0, 0], [4, 0, 0, 0], {1}),  # of those that draw this size
        (1, [1, 2, 0, 0], [1, 2, 0, 0], [0.5, 0, 0, 0], {0}),
        (1, [1, 4, 0, 0], [1, 4, 0, 0], [4, 0, 0, 0], {0}),  # no request waits for a place, as it would at 1
        (1, [0, 4, 0, 0], [2, 4, 3, 1], [4, 0, 0, 4], {2}),
        (1, [4, 4, 4, 4], [4, 6, 5, 4], [4, 0, 0, 2], {3}),  # all are full: of the emptiest
    ],
)
def test_what_a_replica_reads_first_counts(
    images: int, of_bucket: list[int], totals: list[int], delays: list[float], chosen: set[int]
) -> None:
    found = {bucket_affine(images, of_bucket, totals, [4] * 4, RANDOM, delays=delays) for _ in range(100)}
    assert found == chosen


def test_replicas_of_which_nothing_is_known() -> None:
    assert {bucket_affine(1, [2, 0], [2, 0], [0, 0], RANDOM) for _ in range(100)} == {1}


def test_two_choices() -> None:
    found = [fewest(range(4), [3, 2, 1, 0], RANDOM, 2) for _ in range(1000)]
    assert set(found) == {1, 2, 3}  # the fullest is never better than another
    assert found.count(3) == pytest.approx(500, abs=75)
