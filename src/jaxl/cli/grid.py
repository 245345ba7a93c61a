"""`jaxl grid`."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxl.cli.generate import Opener, add_loras
from jaxl.cli.options import DtypeOption, JsonOption, LoraDirOption, LorasOption, ModelOption
from jaxl.cli.terminal import in_background, note, print_line, progress_bars, to_terminal
from jaxl.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from jaxl.pipeline import Pipeline, ShowProgress

AT_ONCE = 4  # pictures in the making
HELP = "NAME=VALUE,..., such as steps=10-30(+10), sampler='euler,DPM++ 2M' or 'prompt s/r=cat,dog'."


def grid(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    x: Annotated[str, typer.Option(metavar="AXIS", help=f"Of columns: {HELP}")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="A .png file.")],
    y: Annotated[str | None, typer.Option(metavar="AXIS", help="The same of rows.")] = None,
    z: Annotated[
        str | None, typer.Option(metavar="AXIS", help="The same of pages, which lie below each other.")
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option that is the same in all; repeatable."),
    ] = None,
    model: ModelOption = "tiny",
    negative_prompt: Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="What not to draw.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all pictures; random by default.")] = None,
    image: Annotated[str | None, typer.Option("--init-image", metavar="FILE", help="A picture to start from.")] = None,
    loras: LorasOption = None,
    lora_dir: LoraDirOption = None,
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Draw pictures whose options differ, on one sheet with labels, and print the name of its file.

    \b
    jaxl grid "a cat" --x steps=4,8,16 --y "sampler=euler,DPM++ 2M,ddim" --seed 3 -o grid.png
    jaxl grid "a red cat" --x "prompt s/r=red,green,blue" --y "cfg scale=2-8[3]" --set steps=12 -o grid.png

    Names are those of `jaxl.Pipeline.generate` or A1111's. Nothing is compiled for a value but sizes and the like, and
    pictures are drawn several at a time.
    """
    from jaxl.call.axes import Axis, cells
    from jaxl.call.images import read_image
    from jaxl.call.sheet import sheet
    from jaxl.png import check_writable, write_png

    path = Path(output)
    if path.suffix.lower() != ".png":
        raise InputError("output", output, "only PNG is written; give a name that ends in .png")
    check_writable("output", path, folder=False)
    said = {name: text for name, text in (("x", x), ("y", y), ("z", z)) if text is not None}
    axes = [Axis.parse(name, text) for name, text in said.items()]
    asked: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt, "prompt_syntax": "a1111"}
    asked["seed"] = secrets.randbelow(2**32) if seed is None else seed
    for text in fixed or ():
        axis = Axis.parse("set", text)
        asked = axis.options(axis.values[0], asked)
    asked["image"] = None if image is None else read_image(image, "image")
    wanted = [{name: own for name, own in cell.items() if own is not None} for cell in cells(axes, asked)]
    with progress_bars(not quiet and to_terminal()) as progress:

        def draw() -> list[Image.Image]:
            pipe = Opener(dtype, False, len(wanted), False, progress)(model)
            added = add_loras(pipe, loras or [], lora_dir, strict=True)
            return _draw(pipe, [{**own, "loras": added} if added else own for own in wanted], progress)

        pictures = in_background(draw)
    labels = [[axis.label(value) for value in axis.values] for axis in axes]
    made = sheet(pictures, *labels)
    settings = {name: value for name, value in asked.items() if name != "image" and value is not None}
    write_png(path, made, None, {"jaxl grid": json.dumps({**settings, "model": model, **said})})
    if not quiet:
        note(f"{len(pictures)} pictures, seed {asked['seed']}")
    facts = {"output": output, "pictures": len(pictures), "seed": asked["seed"]}
    print_line(json.dumps(facts) if as_json else output)


def _draw(pipe: Pipeline, wanted: list[dict[str, Any]], progress: ShowProgress | None) -> list[Image.Image]:
    """Return a picture for each, in the running batches of an engine, so that those that differ share them."""
    from jaxl.backend import PipelineBackend
    from jaxl.call.sheet import check_sheet
    from jaxl.engine import Engine, Request

    plans = [pipe.plan(**own) for own in wanted]  # so that a mistake is told before anything is loaded
    pixels = len(plans) * max(plan.bucket.width for plan in plans) * max(plan.bucket.height for plan in plans)
    check_sheet(pixels)
    lanes = dict.fromkeys(plan.bucket_of(segment).single for plan in plans for segment in plan.segments)
    backend = PipelineBackend(pipe, pipe.load_params(progress), list(lanes), [max(AT_ONCE, pipe.mesh.size)])
    with Engine(backend, max_waiting=len(wanted)) as engine:
        tickets = [engine.submit(Request(own)) for own in wanted]
        pictures = []
        for ticket in tickets:
            pictures += ticket.future.result().images
            if progress is not None:
                progress("generate", len(pictures), len(wanted))
    return pictures
