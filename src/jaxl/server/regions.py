"""Regions as requests ask for them: parts of pictures with prompts of their own, by boxes or masks in base64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jaxl.call.images import read_image
from jaxl.call.region import MOST_REGIONS, Region
from jaxl.server.limits import Proportion, list_from_json
from jaxl.server.pictures import decode

Side = Annotated[float, Field(ge=0, le=16384, allow_inf_nan=False)]


class RegionField(BaseModel):
    """A part of a picture that has a prompt of its own; see `jaxl.Region`."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    box: list[Side] | None = Field(
        None, min_length=4, max_length=4, description="Left, top, right, bottom: shares up to 1, or pixels."
    )
    mask: str | None = Field(None, description="In place of a box: a picture, white where the region is.")
    negative_prompt: str | None = None
    strength: Proportion = 1.0


RegionFields = Annotated[
    list[RegionField],
    Field(max_length=MOST_REGIONS, description="Parts with prompts of their own; in forms as JSON."),
    BeforeValidator(list_from_json("give a list of regions, each with prompt and box")),
]


def read_regions(asked: Sequence[RegionField], max_pixels: int) -> list[Region]:
    """Return the regions with their masks decoded, which takes a while. Raises InputError."""

    def read(each: RegionField) -> Region:
        mask = None if each.mask is None else read_image(decode(each.mask, "regions", max_pixels), "regions")
        return Region(each.prompt, each.box, mask, each.negative_prompt, each.strength)

    return [read(each) for each in asked]
