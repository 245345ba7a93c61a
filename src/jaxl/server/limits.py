"""Numbers and names as requests may have them, for the schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1, le=1000)]
# -1 is random, as in A1111's web UI
Seed = Annotated[int, Field(ge=-1, lt=2**64)]
Side = Annotated[int, Field(ge=8, le=16384, multiple_of=8)]
Proportion = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
GuidanceScale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=100)]
