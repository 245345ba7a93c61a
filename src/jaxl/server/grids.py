"""Grids of pictures: axes as people write them, told as what each picture of the grid is asked for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from jaxl.call.axes import KINDS, REPLACED, Axis, cells
from jaxl.errors import InputError, nearest
from jaxl.server.errors import RESPONSES
from jaxl.server.openai.images import FIELDS, Edit
from jaxl.server.service import know_models

router = APIRouter(prefix="/v1", tags=["jaxl"], dependencies=[Depends(know_models)], responses=RESPONSES)

AXIS = "NAME=VALUES, such as steps=10-30(+10), sampler=euler,ddim or prompt s/r=cat,dog."
# the axes whose options requests have a field for
OFFERED = sorted({"size", REPLACED, *(name for name in KINDS if name in (*FIELDS, *Edit.model_fields))})


class GridRequest(BaseModel):
    """The axes of a grid, and the prompts that texts may be replaced in."""

    x: str = Field(description=f"Of columns: {AXIS}")
    y: str | None = Field(None, description="The same of rows.")
    z: str | None = Field(None, description="The same of pages.")
    prompt: str = ""
    negative_prompt: str = ""


class Grid(BaseModel):
    """The `labels` of columns, rows and pages, and of each picture, columns running fastest, the options of its own.

    These have their names in `Pipeline.generate`; seeds are texts.
    """

    labels: list[list[str]]
    cells: list[dict[str, Any]]


@router.post("/grids")
async def grid(asked: GridRequest) -> Grid:
    """Read the axes of a grid; its pictures are requests like any others."""
    axes = {name: Axis.parse(name, text) for name in ("x", "y", "z") if (text := getattr(asked, name))}
    for name, axis in axes.items():
        if axis.name not in OFFERED:
            raise InputError(name, axis.name, f"requests have no field for it; {nearest(axis.name, OFFERED)}")
    prompts = {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt}
    made = cells([*axes.values()], prompts)
    changed = [{name: value for name, value in cell.items() if prompts.get(name) != value} for cell in made]
    return Grid(
        labels=[[axis.label(value) for value in axis.values] for axis in axes.values()],
        cells=[{name: str(own) if name == "seed" else own for name, own in cell.items()} for cell in changed],
    )
