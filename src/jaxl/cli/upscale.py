"""`jaxl upscale`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxl.cli.options import DtypeOption, JsonOption, QuietOption
from jaxl.cli.terminal import in_background, print_line, progress_bars, to_terminal
from jaxl.errors import InputError


def upscale(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="The picture that is made larger.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="A .png file.")],
    upscaler: Annotated[
        str,
        typer.Option(metavar="FILE", help="A network in a .safetensors or .pth file; or lanczos, or nearest."),
    ] = "lanczos",
    scale: Annotated[
        float | None,
        typer.Option(metavar="X", show_default=False, help="How many times as large; the network's own by default."),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", show_default=False, help="Of the tiles that a network works in; about 272."),
    ] = None,
    dtype: DtypeOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a picture larger with an ESRGAN, a Real-ESRGAN or a DAT, and print the name of its file.

    \b
    jaxl upscale apple.png --upscaler RealESRGAN_x4plus.pth --scale 2 -o large.png

    Nothing in a .pth file is executed: tensors alone are read.
    """
    from jaxl.call.images import read_image
    from jaxl.call.upscale import check_upscaler, upscale
    from jaxl.png import check_writable, kept_texts, write_png

    path = Path(output)
    if path.suffix.lower() != ".png":
        raise InputError("output", output, "only PNG is written; give a name that ends in .png")
    check_writable("output", path, folder=False)
    image = read_image(picture, "PICTURE")

    def make() -> tuple[int, int]:
        with progress_bars(to_terminal() and not quiet) as progress:
            if Path(upscaler).suffix or Path(upscaler).exists():
                from jaxl.run.upscaler import Upscaler  # which imports jax

                network = Upscaler.from_file(upscaler, dtype=dtype, tile=tile)
            else:
                network = check_upscaler(upscaler)
            told = None if progress is None else partial(progress, "upscale")
            made = upscale(image, network, scale, progress=told)
        write_png(path, made, None, kept_texts(image))
        return made.size

    width, height = in_background(make)
    facts = {"output": output, "upscaler": upscaler, "width": width, "height": height}
    print_line(json.dumps(facts) if as_json else output)
