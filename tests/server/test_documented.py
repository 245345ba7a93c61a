"""docs/serving.md has every field of OpenAI's routes and every route."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from jaxl.server.openai.images import Edit, EditInJson, Generation, Variation

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


@pytest.mark.parametrize("body", [Generation, Edit, EditInJson, Variation])
def test_fields_are_on_the_page(body: type[BaseModel]) -> None:
    for name, field in body.model_fields.items():
        assert f"`{field.alias or name}`" in PAGE, f"docs/serving.md does not say what {name} is"


def test_routes_are_on_the_page(app: FastAPI) -> None:
    paths = [re.sub(r"^/(sdapi/v1|v1)/", "", path) for path in app.openapi()["paths"]]
    assert [path for path in paths if path not in PAGE] == []
