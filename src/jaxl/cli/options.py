"""Options that several commands have, and how they are read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from jaxl.errors import InputError

VariantOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of the weight files, such as fp16.")]
RevisionOption = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")]
LocalOption = Annotated[bool, typer.Option("--local-files-only", help="Use what was downloaded before, no network.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def read_size(text: str) -> tuple[int, int] | None:
    """Width and height of a text such as 1024x768, or None where it is not like that."""
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", text)
    return (int(match[1]), int(match[2])) if match else None


def read_counts(argument: str, text: str) -> list[int]:
    """Whole numbers of at least 1, each once."""
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        raise InputError(argument, text, "give whole numbers with commas between them")
    return list(dict.fromkeys(read_count(argument, int(part)) for part in parts))


def read_count(argument: str, value: int) -> int:
    """A whole number of at least 1."""
    if value < 1:
        raise InputError(argument, value, "give 1 or more")
    return value
