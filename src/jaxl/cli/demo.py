"""`jaxl demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxl.cli.options import LocalOption, ModelOption, PreviewVaeOption, ServedSizesOption
from jaxl.cli.serve import serve
from jaxl.server.settings import HttpOptions, ModelOptions


def demo(
    model: ModelOption = ModelOptions.model,
    size: ServedSizesOption = None,
    port: Annotated[int, typer.Option(help="0 is any that is free.")] = HttpOptions.port,
    preview_vae: PreviewVaeOption = ModelOptions.preview,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
    local_files_only: LocalOption = ModelOptions.local_files_only,
) -> None:
    """Draw on a web page of this machine, which nobody else can open.

    It is the page of `jaxl serve --ui`, which has more options.
    """
    serve(
        [model],
        port=port,
        size=size,
        preview_vae=preview_vae,
        ui=True,
        local_files_only=local_files_only,
        open_page=not no_browser,
    )
