"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

VariantOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of the weight files, such as fp16.")]
RevisionOption = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")]
LocalOption = Annotated[bool, typer.Option("--local-files-only", help="Use what was downloaded before, no network.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
