"""Second passes as requests ask for them, and the sizes that a server draws them at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jaxl.call.hires import MOST_SCALE, Hires, not_enlarged
from jaxl.call.sizes import Size, nearest_size
from jaxl.server.limits import GuidanceScale, Name, WidthAndHeight, from_json
from jaxl.server.sizes import Policy

FACTOR = 8  # pixels of a latent, in all models of SDXL's kind


class HiresField(BaseModel):
    """A second pass; see `jaxl.Hires`."""

    model_config = ConfigDict(extra="forbid")

    scale: float = Field(2.0, ge=1, le=MOST_SCALE, allow_inf_nan=False, description="By which each side is multiplied.")
    size: WidthAndHeight | None = None
    upscaler: Name = Field("latent", description="latent, latent-bicubic ..., lanczos, or an upscaler of the server.")
    steps: int = Field(0, ge=0, le=1000, description="0 is as many as in the first pass.")
    strength: float = Field(0.7, gt=0, le=1, allow_inf_nan=False, description="How much changes.")
    prompt: str | None = Field(None, description="The second pass's own.")
    negative_prompt: str | None = None
    scheduler: Name | None = None
    guidance_scale: GuidanceScale | None = None

    def read(self) -> Hires:
        """Return it as an argument of `Pipeline.generate`."""
        return Hires(**{**self.model_dump(), "size": None if self.size is None else tuple(self.size)})


def _table_of(value: Any) -> Any:
    return from_json(value, 'give a table, such as {"scale": 1.5}')


AskedHires = Annotated[
    HiresField,
    Field(description='A second pass at a larger size, such as {"scale": 1.5}; in forms as JSON.'),
    BeforeValidator(_table_of),
]


def ends_at(size: Size, hires: Hires | None) -> Size:
    """Return the size of an image that begins at a size."""
    return size if hires is None else hires.sizes(size, FACTOR)[1]


def drawn_at(hires: Hires, size: Size, known: Sequence[Size], policy: Policy) -> Hires:
    """Return the second pass that is drawn for one of images of a size, at one of those `known`. Raises InputError."""
    wanted = ends_at(size, hires)
    if wanted in known:
        return hires
    larger = [each for each in known if each[0] >= size[0] and each[1] >= size[1]]
    if policy == "strict" or not larger:
        raise not_enlarged(wanted, known)
    return replace(hires, size=nearest_size(wanted, larger))
