"""Forecasts of the engine."""

from jaxl.engine.forecast import Average, starts


def test_those_who_wait_begin_as_places_become_free() -> None:
    assert starts([5, 2], 3, [4, 4, 4, 1]) == [0, 2, 4, 5]
    assert starts([], 2, [3, 3, 3]) == [0, 0, 3]
    assert starts([7], 1, []) == []


def test_average_forgets() -> None:
    average = Average(0.5)
    assert average.value is None
    for value in (4.0, 2.0, 2.0):
        average.add(value)
    assert average.value == 2.5
