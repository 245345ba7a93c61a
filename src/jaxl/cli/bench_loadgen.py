"""`jaxl bench loadgen`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxl.call.sizes import check_size
from jaxl.cli.options import (
    DtypeOption,
    JsonOption,
    LocalOption,
    QuietOption,
    RevisionOption,
    VariantOption,
    read_count,
)
from jaxl.cli.terminal import in_background, note, print_line, print_table, progress_bars, to_terminal
from jaxl.errors import InputError, JaxlError

if TYPE_CHECKING:
    from jaxl.bench.systems import PictureSettings, System
    from jaxl.pipeline import ShowProgress

MODEL = "tiny"
AUTO = "auto"


def bench_loadgen(
    scenario: Annotated[
        Literal["offline", "server"],
        typer.Option(help="Everything at once, or one picture after another at random times."),
    ] = "offline",
    model: Annotated[
        str | None, typer.Option(show_default=MODEL, help="A hub id, a folder, a .safetensors file, or tiny.")
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="A jaxl serve that runs, in place of a model.")] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Draw every caption once, and keep and score the pictures.")
    ] = False,
    captions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .tsv, .json or .txt; simple ones for tiny by default.")
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .npy or .safetensors; the noise of seed 0 by default.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="The model's own by default.")] = None,
    steps: Annotated[int, typer.Option(help="Of the scheduler.")] = 20,
    scheduler: Annotated[str, typer.Option(metavar="NAME", help="As in jaxl generate.")] = "euler",
    guidance: Annotated[float, typer.Option(help="Scale; 1 is off.")] = 8.0,
    batch: Annotated[
        int | None, typer.Option(show_default=False, help="Pictures at once: 4, or one for each device.")
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="In the server scenario: begin no picture before the running batch is done."),
    ] = False,
    target_qps: Annotated[
        float, typer.Option(help="Pictures a second: as they come in the server scenario, or as expected offline.")
    ] = 1.0,
    min_duration: Annotated[float, typer.Option(metavar="SECONDS", help="Of the run.")] = 600.0,
    min_queries: Annotated[
        int | None, typer.Option(show_default="5000 offline, 100 in the server scenario", help="Pictures.")
    ] = None,
    latency: Annotated[float, typer.Option(metavar="SECONDS", help="Bound of the server scenario.")] = 20.0,
    percentile: Annotated[float, typer.Option(help="Of pictures that must keep it.")] = 99.0,
    clip_model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A CLIP checkpoint, for the CLIP score of an accuracy run.")
    ] = None,
    fid_stats: Annotated[
        Path | None, typer.Option(metavar="FILE", help="mu and sigma of real pictures in a .npz, for the FID.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="FID's Inception in a .safetensors, which the FID needs.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="JAXL_API_KEY", help="Of a server that asks for one.")] = None,
    dtype: DtypeOption = AUTO,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="fp8 or int8 for most of the model, as in jaxl serve.")
    ] = None,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="For LoadGen's logs; a new one in this folder by default."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put MLPerf Inference's load on a model or on a server: LoadGen asks, measures and judges.

    \b
    jaxl bench loadgen --min-duration 10 --min-queries 20 --target-qps 3
    jaxl bench loadgen --scenario server --url http://127.0.0.1:8000 --min-duration 60
    jaxl bench loadgen --model stabilityai/stable-diffusion-xl-base-1.0 --captions captions_source.tsv \\
        --latents latents.npy --target-qps 20
    jaxl bench loadgen --accuracy --clip-model ./clip-vit-base-patch32

    The defaults are MLPerf's for Stable Diffusion XL; a run with others is no submission, and the last lines say what
    differs. LoadGen's logs, results.json and the pictures of an accuracy run go to a folder of their own.
    """
    from jaxl.bench import loadgen
    from jaxl.bench.accuracy import Accuracy
    from jaxl.bench.captions import CAPTIONS, read_captions, read_latents
    from jaxl.bench.systems import PictureSettings
    from jaxl.files import write_text
    from jaxl.png import check_writable

    of_models = {"model": model, "batch": batch, "latents": latents, "precision": precision, "variant": variant}
    of_models |= {"revision": revision, "dtype": None if dtype == AUTO else dtype}
    if url is not None:
        _refuse(of_models, "the server has its own; leave it out beside --url")
    if static and (url is not None or scenario == "offline"):
        raise InputError("static", static, "only a model's server scenario has a running batch; add --scenario server")
    scores = {"clip_model": clip_model, "fid_stats": fid_stats, "inception": inception}
    if not accuracy:
        _refuse(scores, "only pictures of --accuracy are scored; add it")
    load = loadgen.LoadGenOptions(scenario, accuracy, target_qps, min_duration, min_queries, latency, percentile)
    load.check()
    texts = CAPTIONS if captions is None else read_captions(captions)
    picture = PictureSettings(
        size=_size(size),
        steps=read_count("steps", steps),
        scheduler=scheduler,
        guidance_scale=guidance,
        latents=None if latents is None else read_latents(latents),
    )
    if batch is not None:
        read_count("batch", batch)
    folder = output or Path(f"loadgen-{scenario}-{datetime.now():%Y%m%d-%H%M%S}")
    check_writable("output", folder, folder=True)
    loadgen.check_folder(folder)
    measured = Accuracy(folder / "images", texts, **scores) if accuracy else None
    options = {"dtype": dtype, "precision": precision, "variant": variant, "revision": revision}
    options["local_files_only"] = local_files_only
    if static:
        options["joins"] = False

    def measure() -> dict[str, Any]:
        with (
            progress_bars(not quiet and to_terminal()) as progress,
            _open(scenario, model or MODEL, url, api_key, picture, batch, progress, options) as system,
        ):
            show = None if progress is None else lambda done, total: progress("generate", done, total)
            keep = None if measured is None else measured.keep
            results = loadgen.run(load, system, texts, folder, keep=keep, progress=show)
            facts = {"file": None if captions is None else str(captions), "number": len(texts)}
            report = loadgen.report(load, system, picture, facts, results)
        if measured is None:
            return report
        if measured.scored and not quiet:
            note("scoring the pictures")
        return {**report, "accuracy": measured.scores()}

    report = in_background(measure)
    write_text(folder / "results.json", json.dumps(report, indent=1) + "\n")
    print_table(loadgen.table(report))
    if as_json:
        print_line(json.dumps(report))
    if not quiet:
        note(f"not a submission: {'; '.join(report['not_a_submission'])}")
        note(f"LoadGen's logs and results.json are in {folder}")
    if report["valid"] is False:
        reason = report["results"].get("result_invalid_reason") or report["results"]["early_stopping_result"]
        raise JaxlError(f"LoadGen says INVALID: {reason}")


def _open(
    scenario: Literal["offline", "server"],
    model: str,
    url: str | None,
    api_key: str | None,
    picture: PictureSettings,
    batch: int | None,
    progress: ShowProgress | None,
    options: Mapping[str, Any],
) -> AbstractContextManager[System]:
    from jaxl.bench import systems

    if url is not None:
        return systems.open_http_system(url, picture, scenario, api_key)
    of_scenario = {"offline": systems.open_pipeline_system, "server": systems.open_engine_system}
    return of_scenario[scenario](model, picture, batch, progress, **options)


def _refuse(options: Mapping[str, Any], remedy: str) -> None:
    """Raise InputError for the first of the options that was given."""
    for name, value in options.items():
        if value is not None:
            raise InputError(name, str(value), remedy)


def _size(text: str | None) -> tuple[int, int] | None:
    return None if text is None else check_size("size", text)
