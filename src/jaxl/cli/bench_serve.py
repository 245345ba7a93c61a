"""`jaxl bench serve`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from jaxl.cli.options import JsonOption, QuietOption, read_counts
from jaxl.cli.terminal import in_background, note, print_line, print_table
from jaxl.errors import InputError, JaxlError


def bench_serve(
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Of a server that runs; without it, jaxl serve is started.")
    ] = None,
    serve: Annotated[
        str, typer.Option(metavar="OPTIONS", help="Of the jaxl serve that is started, such as '--model m --slots 8'.")
    ] = "",
    rate: Annotated[
        str | None, typer.Option(metavar="X,...", help="Images a second; by default shares of what the server draws.")
    ] = None,
    share: Annotated[str, typer.Option(metavar="X,...", help="Of what it draws at most, where no rates are given.")] = (
        "0.2,0.4,0.6,0.8,1"
    ),
    seconds: Annotated[float, typer.Option(help="How long requests come, at each rate.")] = 60.0,
    steps: Annotated[str, typer.Option(metavar="N,...", help="Each request has one of these.")] = "20",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="The server's own by default.")] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Of each request.")] = 1,
    stream: Annotated[float, typer.Option(metavar="SHARE", help="Of requests that are streamed with previews.")] = 0.0,
    previews: Annotated[int, typer.Option(help="Of each image that is streamed.")] = 2,
    cancel: Annotated[float, typer.Option(metavar="SHARE", help="Of requests whose client goes away.")] = 0.0,
    malformed: Annotated[float, typer.Option(metavar="SHARE", help="Of requests that must be refused.")] = 0.0,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="After which an answer is worth nothing, for goodput.")
    ] = None,
    variety: Annotated[int, typer.Option(help="Different prompts and seeds.")] = 1000,
    check: Annotated[int, typer.Option(help="Images that are drawn alone in the end, and must be the same.")] = 0,
    static: Annotated[
        bool, typer.Option("--static/--no-static", help="Also measure static batching, where a server is started.")
    ] = True,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Each request is for one of these; repeatable.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="JAXL_API_KEY", help="Each request comes with one of these; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals and of what is asked.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A folder for serve.json and plots.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a server under requests that come at random times, whether or not earlier ones were answered.

    \b
    jaxl bench serve --serve "--model tiny" --steps 8 --seconds 60 --output load
    jaxl bench serve http://127.0.0.1:8000 --rate 1,2,4 --deadline 30

    Latency counts from when a request was meant to be sent; a lone request is measured before. Without a URL, jaxl
    serve is started as it is and with --static, which shows what it is worth that requests join a running batch.
    """
    from jaxl.bench import serve as bench

    if output is not None:
        from jaxl.bench.plots import check_matplotlib
        from jaxl.png import check_writable

        check_matplotlib()
        check_writable("output", output, folder=True)
    numbers = {"rate": rate, "share": share}
    read = {
        name: None if text is None else [_number(name, each) for each in text.split(",")]
        for name, text in numbers.items()
    }
    found = in_background(
        lambda: bench.run(
            url=url,
            options=shlex.split(serve),
            static=static,
            rates=read["rate"],
            shares=read["share"] or (),
            seconds=seconds,
            steps=read_counts("steps", steps),
            size=size,
            images=images,
            stream_share=stream,
            previews=previews,
            cancel_share=cancel,
            malformed_share=malformed,
            deadline=deadline,
            models=model or (),
            api_keys=api_key or (),
            variety=variety,
            seed=seed,
            check=check,
            tell=(lambda text: None) if quiet else note,
        )
    )
    print_table(bench.table(found))
    if output is not None:
        from jaxl.files import write_text

        bench.write_plots(output, found)
        write_text(output / "serve.json", json.dumps(found, indent=1) + "\n")
    if as_json:
        print_line(json.dumps(found))
    wrong = sum(report["unexpected"] + report["wrong_images"] for each in found["servers"].values() for report in each)
    if wrong:
        raise JaxlError(f"{wrong} answers were not what they should be")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(name, text, "give numbers, with commas between several") from None
