"""`jaxl preprocess`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxl.cli.options import JsonOption
from jaxl.cli.terminal import in_background, print_line, print_table
from jaxl.errors import InputError

if TYPE_CHECKING:
    from jaxl.preprocessors.preprocessor import Preprocessor


def preprocess(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="canny, invert, blur ...")] = None,
    image: Annotated[str | None, typer.Argument(metavar="IMAGE", help="The picture that it is made of.")] = None,
    output: Annotated[str | None, typer.Argument(metavar="OUTPUT", help="A .png file.")] = None,
    low: Annotated[float | None, typer.Option(help="Of canny: weaker edges are left out.")] = None,
    high: Annotated[float | None, typer.Option(help="Of canny: edges that begin a line.")] = None,
    threshold: Annotated[float | None, typer.Option(help="What counts as a line, or as white.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Pixels of a blur.")] = None,
    rate: Annotated[float | None, typer.Option(help="Of tile: how far it is scaled down.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Of recolor_...: above 1 is darker.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of shuffle.")] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Scale the shorter side to this; by default its size is kept.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of inpaint: white where it is painted anew.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="DIR", help="The folder with a detector's files.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what there is, as without NAME.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a picture for a ControlNet, such as edges, of another, and print the name of its file.

    \b
    jaxl preprocess canny photo.png edges.png --low 50 --high 150
    jaxl generate "a house" --controlnet edges=canny-sdxl.safetensors --control edges:edges.png

    The detectors of controlnet_aux need that package and --weights, the folder with their files: nothing is downloaded.
    """
    given = dict(locals())
    if listed or name is None:
        _list(as_json)
        return
    from jaxl.call.images import read_image
    from jaxl.call.preprocess import preprocess
    from jaxl.png import check_writable, write_png
    from jaxl.preprocessors.registry import PREPROCESSORS

    if image is None or output is None:
        remedy = "give two files: jaxl preprocess canny photo.png edges.png"
        raise InputError("OUTPUT" if image else "IMAGE", None, remedy)
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise InputError("OUTPUT", output, "only PNG is written; give a name that ends in .png")
    check_writable("OUTPUT", path, folder=False)
    picture = read_image(image, "IMAGE")
    names = {parameter.name for each in PREPROCESSORS.values() for parameter in each.parameters}
    parameters = {each: given[each] for each in names if given[each] is not None}

    def make() -> None:
        how: dict[str, Any] = {"resolution": resolution, "mask": mask, "weights": weights, **parameters}
        write_png(path, preprocess(name, picture, **how), None)

    in_background(make)
    print_line(json.dumps({"output": output, "name": name, **parameters}) if as_json else output)


def _list(as_json: bool) -> None:
    from jaxl.bench.report import ReportTable
    from jaxl.preprocessors.registry import PREPROCESSORS

    if as_json:
        print_line(json.dumps({name: _facts(each) for name, each in PREPROCESSORS.items()}))
        return
    rows = [
        (
            name,
            each.about,
            ", ".join(f"--{one.name} {one.default:g} ({one.least:g} to {one.most:g})" for one in each.parameters)
            + ("--mask FILE" if each.masked else "")
            + ("--weights DIR with " if each.files else "")
            + ", ".join(each.files),
            "" if each.needs is None else each.needs.title + ("" if each.installed else ", not installed"),
        )
        for name, each in PREPROCESSORS.items()
    ]
    print_table(ReportTable("Preprocessors", ("name", "what it makes", "takes", "needs"), rows))


def _facts(each: Preprocessor) -> dict[str, Any]:
    return {
        "about": each.about,
        "parameters": [vars(one) for one in each.parameters],
        "mask": each.masked,
        "weights": list(each.files),
        "installed": each.installed,
    }
