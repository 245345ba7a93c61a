"""Controls as requests ask for them: ControlNets of the server, each with a picture in base64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jaxl.call.control import Control, Weighting
from jaxl.call.images import read_image
from jaxl.server.limits import Name, Proportion, list_from_json
from jaxl.server.pictures import decode
from jaxl.server.preprocess import Preprocess, prepared

# of one image
MOST_CONTROLS = 8


class ControlField(BaseModel):
    """A ControlNet's part in a picture; see `jaxl.Control`."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    image: str = Field(description="A PNG, JPEG or WebP picture, in base64 or as a data URL.")
    strength: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    start: Proportion = 0.0
    end: Proportion = 1.0
    weighting: Weighting = "balanced"
    mode: Name | None = Field(None, description="The kind of the picture, for a ControlNet that takes several.")
    preprocess: Preprocess | None = Field(
        None, description='What makes its picture of `image`, such as {"name": "canny", "low": 50}, or a name alone.'
    )


ControlFields = Annotated[
    list[ControlField],
    Field(max_length=MOST_CONTROLS, description="ControlNets with the pictures that they follow; in forms as JSON."),
    BeforeValidator(list_from_json("give a list of controls, each with name and image")),
]


def read_controls(asked: Sequence[ControlField], max_pixels: int) -> list[Control]:
    """Return the controls with their pictures decoded, which takes a while. Raises InputError."""
    return [_read(each, max_pixels) for each in asked]


def _read(asked: ControlField, max_pixels: int) -> Control:
    picture, how = read_image(decode(asked.image, "controls", max_pixels), "controls"), asked.preprocess
    return Control(
        asked.name,
        picture if how is None else prepared(picture, how.facts, how.mask, max_pixels),
        asked.strength,
        asked.start,
        asked.end,
        asked.weighting,
        asked.mode,
        {} if how is None else {"preprocess": how.facts},
    )
