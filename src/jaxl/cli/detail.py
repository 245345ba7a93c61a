"""`jaxl detail`."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxl.cli.generate import Opener, add_loras
from jaxl.cli.options import DtypeOption, JsonOption, LoraDirOption, LorasOption, ModelOption, QuietOption
from jaxl.cli.terminal import in_background, note, print_line, progress_bars, to_terminal
from jaxl.errors import InputError


def detail(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="The picture whose parts are drawn anew.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the parts show.")],
    parts: Annotated[
        list[str],
        typer.Option(
            "--region",
            metavar="BOX_OR_MASK",
            help="left,top,right,bottom, shares of the picture or pixels, or a file, white where to draw; repeatable.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="A .png file.")],
    model: ModelOption = "tiny",
    negative_prompt: Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="What not to draw.")] = None,
    strength: Annotated[float, typer.Option(help="0 to 1: how much of them changes.")] = 0.4,
    padding: Annotated[int, typer.Option(metavar="PIXELS", help="Around a part, seen with it.")] = 32,
    feather: Annotated[
        float, typer.Option(metavar="PIXELS", help="Over which a part goes over into the picture.")
    ] = 4.0,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="At which parts are drawn; the model's own by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Counts up from part to part; random by default.")] = None,
    steps: Annotated[int | None, typer.Option(show_default=False, help="Of the scheduler.")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance", help="How closely to follow it.")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="NAME", help="The model's own by default.")] = None,
    loras: LorasOption = None,
    lora_dir: LoraDirOption = None,
    dtype: DtypeOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw parts of a picture anew, each enlarged to a size of the model, and print the name of the file.

    \b
    jaxl detail crowd.png "a face" --region 0.4,0.1,0.6,0.3 --region 700,80,820,220 -o better.png

    Nothing looks for faces: you say where.
    """
    from jaxl.call.detail import check_parts
    from jaxl.call.images import read_image
    from jaxl.call.sizes import check_size
    from jaxl.png import check_writable, kept_texts, write_png

    path = Path(output)
    if path.suffix.lower() != ".png":
        raise InputError("output", output, "only PNG is written; give a name that ends in .png")
    check_writable("output", path, folder=False)
    image = read_image(picture, "PICTURE")
    asked: dict[str, Any] = {"negative_prompt": negative_prompt, "steps": steps, "guidance_scale": guidance_scale}
    asked |= {"scheduler": scheduler, "seed": secrets.randbelow(2**32) if seed is None else seed}
    asked |= {"prompt_syntax": "a1111", "strength": strength, "padding_mask_crop": padding}
    if size is not None:
        asked["width"], asked["height"] = check_size("size", size)
    wanted = [_part(text) for text in parts]
    check_parts(image, wanted, prompt, feather)  # so that a mistake is told before anything is loaded

    def make() -> None:
        with progress_bars(to_terminal() and not quiet) as progress:
            pipe = Opener(dtype, False, len(wanted), False, progress)(model)
            asked["loras"] = add_loras(pipe, loras or [], lora_dir, strict=True) or None
            params = pipe.load_params(progress)
            made = pipe.detail(params, image, wanted, prompt, feather=feather, progress=progress, **asked)
        write_png(path, made, None, kept_texts(image))

    in_background(make)
    if not quiet:
        note(f"parts: {len(wanted)}, seed {asked['seed']}")
    print_line(json.dumps({"output": output, "parts": len(wanted), "seed": asked["seed"]}) if as_json else output)


def _part(text: str) -> Any:
    """Return the numbers of a box, or the name of a file."""
    try:
        return tuple(float(side) for side in text.split(","))
    except ValueError:
        return text
