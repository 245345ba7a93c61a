"""Image prompts as requests ask for them: IP-Adapters of the server, each with pictures in base64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jaxl.call.image_prompt import MOST_STRENGTH, ImagePrompt
from jaxl.call.images import read_image
from jaxl.server.limits import Name, Proportion, list_from_json
from jaxl.server.pictures import decode

# of one image, and pictures of each
MOST_PROMPTS, MOST_PICTURES = 8, 16


class ImagePromptField(BaseModel):
    """An IP-Adapter's part in a picture; see `jaxl.ImagePrompt`."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    images: list[str] = Field(
        min_length=1, max_length=MOST_PICTURES, description="PNG, JPEG or WebP pictures, in base64 or as data URLs."
    )
    strength: float = Field(1.0, ge=0, le=MOST_STRENGTH, allow_inf_nan=False)
    mask: str | None = Field(None, description="A picture, white where it acts.")
    start: Proportion = 0.0
    end: Proportion = 1.0
    blocks: str | Mapping[str, Any] | None = Field(None, description='"style", "layout", "style and layout"; all else.')


ImagePromptFields = Annotated[
    list[ImagePromptField],
    Field(max_length=MOST_PROMPTS, description="IP-Adapters with pictures to be like; in forms as JSON."),
    BeforeValidator(list_from_json("give a list of image prompts, each with name and images")),
]


def read_image_prompts(asked: Sequence[ImagePromptField], max_pixels: int) -> list[ImagePrompt]:
    """Return the image prompts with their pictures decoded, which takes a while. Raises InputError."""

    def picture(data: str) -> Any:
        return read_image(decode(data, "image_prompts", max_pixels), "image_prompts")

    return [
        ImagePrompt(
            each.name,
            [picture(data) for data in each.images],
            each.strength,
            None if each.mask is None else picture(each.mask),
            each.start,
            each.end,
            each.blocks,
        )
        for each in asked
    ]
