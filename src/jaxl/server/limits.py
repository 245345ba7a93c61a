"""Numbers and names as requests may have them, for the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, LiteralString

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

# of one image
MOST_LORAS = 16


def from_json(value: Any, wanted: LiteralString) -> Any:
    """Return what a field of a form has as JSON; errors say what is `wanted`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PydanticCustomError("not_json", f"not JSON; {wanted}") from None


def list_from_json(wanted: LiteralString) -> Callable[[Any], Any]:
    """Return what reads the list that a form has as JSON, which comes as a list of one text."""

    def read(value: Any) -> Any:
        text = value[0] if isinstance(value, list) and len(value) == 1 else value
        return from_json(text, wanted) if isinstance(text, str) else value

    return read


def _table_of(value: Any) -> Any:
    return from_json(value, 'give names with strengths, such as {"pencil": 0.8}')


Count = Annotated[int, Field(ge=1, le=1000)]
# -1 is random, as in A1111's web UI
Seed = Annotated[int, Field(ge=-1, lt=2**64)]
Side = Annotated[int, Field(ge=8, le=16384, multiple_of=8)]
Pixels = Annotated[int, Field(ge=0, le=16384)]
Proportion = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
GuidanceScale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Blur = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=100)]
Strength = Annotated[float, Field(strict=True, ge=-20, le=20, allow_inf_nan=False)]
# names of LoRAs; forms have them as a text
Loras = Annotated[
    dict[Annotated[str, Field(max_length=255)], Strength],
    Field(max_length=MOST_LORAS, description='Names with strengths, such as {"pencil": 0.8}; in forms as JSON.'),
    BeforeValidator(_table_of),
]
# forms have these as a text
FreeUScales = Annotated[
    list[GuidanceScale],
    Field(min_length=4, max_length=4, description="s1, s2, b1 and b2, such as [0.6, 0.4, 1.1, 1.2]; in forms as JSON."),
    BeforeValidator(list_from_json("give s1, s2, b1 and b2: [0.6, 0.4, 1.1, 1.2]")),
]
Interval = Annotated[
    list[Proportion],
    Field(min_length=2, max_length=2, description="Shares of the steps, such as [0.2, 0.8]; in forms as JSON."),
    BeforeValidator(list_from_json("give its start and its end: [0.2, 0.8]")),
]
Delta = Annotated[int, Field(ge=-(2**64), le=2**64)]
WidthAndHeight = Annotated[
    list[Side],
    Field(min_length=2, max_length=2, description="Width and height, such as [512, 512]; in forms as JSON."),
    BeforeValidator(list_from_json("give width and height: [512, 512]")),
]
PlaceAndNumber = Annotated[
    list[Annotated[int, Field(ge=0, le=1000)]],
    Field(
        min_length=2,
        max_length=2,
        description="The first image's place among those that one generator draws, and their number; in forms as JSON.",
    ),
    BeforeValidator(list_from_json("give the first image's place and the number of images: [0, 4]")),
]
