"""The axes of a grid, as a page asks what its pictures are."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

PATH = "/v1/grids"


def test_pictures_by_column_and_row(client: TestClient) -> None:
    asked = {"x": "steps=4,8", "y": "prompt s/r=cat,dog", "prompt": "a cat"}
    found = client.post(PATH, json=asked).json()
    assert found["labels"] == [["Steps: 4", "Steps: 8"], ["cat", "dog"]]
    assert found["cells"] == [
        {"steps": 4},
        {"steps": 8},
        {"steps": 4, "prompt": "a dog"},
        {"steps": 8, "prompt": "a dog"},
    ]
    sides = client.post(PATH, json={"x": "size=64x32,32x32", "z": f"seed={2**64 - 1}"}).json()["cells"]
    assert sides[0] == {"width": 64, "height": 32, "seed": str(2**64 - 1)}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"x": "stepps=4"}, "x='stepps': did you mean 'steps'"),
        ({"x": "steps=4", "y": "steps=5"}, "y='steps': it is an axis already"),
        ({"x": "s_churn=0.5"}, "x='s_churn': requests have no field for it"),
        ({"x": "steps=1-1000"}, "x='1-1000': a range of 1000 values; give 1 to 400"),
        ({"x": "prompt s/r=dog,cat", "prompt": "a bird"}, "prompt s/r='dog': it is in none of the prompts"),
    ],
)
def test_mistakes_name_the_axis(client: TestClient, asked: dict[str, Any], said: str) -> None:
    answer = client.post(PATH, json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(said)
