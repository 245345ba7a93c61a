"""Turns of batches that share the devices."""

from jaxl.engine.turns import Claim, urgency

FRESH = Claim(0.0, 10.0, 10.0)


def test_images_of_a_batch_add_up() -> None:
    assert urgency([FRESH, FRESH]) == 2 * urgency([FRESH])
    assert urgency([]) == 0


def test_what_ends_soon_is_urgent() -> None:
    short, half = Claim(0.0, 5.0, 5.0), Claim(5.0, 10.0, 5.0)
    assert urgency([short]) > urgency([half]) > urgency([FRESH])


def test_a_slow_lane_is_not_urgent_for_its_slow_rows() -> None:
    """Ten rows of ten seconds, beside ten rows of one second, after the same wait."""
    assert urgency([Claim(20.0, 100.0, 100.0)]) < urgency([Claim(20.0, 10.0, 10.0)])


def test_who_waits_comes_first_in_the_end() -> None:
    """However many fresh ones there are, the cube of what it waited is more."""
    fresh = urgency([Claim(0.0, 1.0, 1.0)] * 64)
    assert urgency([Claim(500.0, 100.0, 100.0)]) < fresh < urgency([Claim(10_000.0, 100.0, 100.0)])
