"""The names of lanes."""

import pytest

import jaxl
from jaxl.call.lanes import LANES, check_lanes


def test_each_name_once() -> None:
    assert check_lanes(["pag", "cached", "pag"]) == ("pag", "cached")
    assert check_lanes(LANES) == LANES


@pytest.mark.parametrize("name", ["", "cache"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(jaxl.InputError, match=f"lanes='{name}': .*known: {', '.join(sorted(LANES))}"):
        check_lanes([name])
