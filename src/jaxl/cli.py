"""The command `jaxl`.

Results go to standard output, everything else to standard error. Exit status: 0 done; 2 bad input and 1 failure, each
with one line that says what; 130 interrupted.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from jaxl.errors import CheckpointError, InputError, JaxlError, OutputError, TruncationWarning

# jax, and what imports it, is imported by the commands, so that help and usage errors come at once
if TYPE_CHECKING:
    from PIL import Image

    from jaxl.pipeline import Pipeline, Result
    from jaxl.pipeline import Progress as ShowProgress

T = TypeVar("T")

INTERRUPTED = 130

# the arguments of `Pipeline.generate` that the command calls by another name
FLAGS = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "negative_prompt_2": "--negative-2",
    "num_images": "--count",
    "guidance_scale": "--guidance",
    "height": "--size, height",
    "width": "--size, width",
}

STAGES = {"load": "Loading", "compile": "Compiling", "generate": "Drawing"}

# names that ask for another format than PNG
OTHER_FORMATS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

VariantOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of the weight files, such as fp16.")]
RevisionOption = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")]
LocalOption = Annotated[bool, typer.Option("--local-files-only", help="Use what was downloaded before, no network.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def main() -> None:
    """Run the command line of this process and exit."""
    if sys.stdout is not None:  # file names may be any bytes
        sys.stdout.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # nobody reads any more
                stream.flush()
    # Programs may be compiling still, in threads that can neither be stopped nor outlive the interpreter; and to take
    # compiled ones apart, as the interpreter would, keeps the user waiting 0.4 s for nothing.
    os._exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit status."""
    try:
        with _plain_warnings():
            code = typer.main.get_command(app).main(argv, prog_name="jaxl", standalone_mode=False) or 0
    except (InputError, CheckpointError, typer.TyperException) as error:
        return _fail(2, _message(error))
    except JaxlError as error:
        return _fail(1, _message(error))
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _note("interrupted")
    return code


@app.callback(
    help="Stable Diffusion XL in JAX, on TPU, GPU and CPU.\n\n"
    'Start with: jaxl generate "a red apple on a blue background, flat style"'
)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        from jaxl import __version__

        _print(f"jaxl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        _print(context.get_help())


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    model: Annotated[str, typer.Option(help="A hub id, a folder, a .safetensors file, or tiny (embedded).")] = "tiny",
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What not to draw.")] = None,
    seed: Annotated[int | None, typer.Option(help="Counts up from image to image; random by default.")] = None,
    steps: Annotated[int, typer.Option(help="Calls of the network.")] = 25,
    guidance: Annotated[float, typer.Option(help="How closely to follow the prompt; 1 is off, and faster.")] = 5.0,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels; the model's own by default.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="NAME", help="euler, euler_a, ddim, dpm++2m ...; the model's own by default.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR_OR_FILE", help="A folder, or the name of a .png file.")
    ] = ".",
    prompt_2: Annotated[str | None, typer.Option(metavar="TEXT", help="PROMPT of the second text encoder.")] = None,
    negative_2: Annotated[str | None, typer.Option(metavar="TEXT", help="--negative of the second one.")] = None,
    clip_skip: Annotated[int, typer.Option(help="Last layers of the text encoders to skip beyond the usual.")] = 0,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"], typer.Option(help="auto is float32 on a CPU, else bfloat16.")
    ] = "auto",
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    shard_params: Annotated[
        bool, typer.Option("--shard-params", help="Split the weights over all devices: slower, less memory on each.")
    ] = False,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Draw images and print the names of their files.

    \b
    jaxl generate "a castle on a pink background, flat style" --seed 3
    jaxl generate "a dolphin" -n 4 --output pictures --scheduler dpm++2m_karras
    jaxl generate "a lighthouse" --model ./sdxl.safetensors --size 1024x768 --output light.png

    The PNG files are called jaxl-SEED.png and replace no other; one that --output names for a single image is replaced.
    They tell how they were made, in A1111's text and in jaxl's own. Write -- before a prompt that begins with a dash.
    """
    from jaxl.arguments import guidance_per_image, seeds_per_image, whole_number

    began = time.perf_counter()
    width, height = _width_height(size)
    whole_number("num_images", count, least=1)
    guidance_per_image(guidance, count)
    # 32 bits, because many other programs read no more
    seeds = seeds_per_image(secrets.randbelow(2**32) if seed is None else seed, count)
    destination = _destination(output, count)
    source = {"model": model, "revision": revision, "variant": variant}
    request = {
        "prompt": prompt,
        "prompt_2": prompt_2,
        "negative_prompt": negative,
        "negative_prompt_2": negative_2,
        "steps": steps,
        "guidance_scale": guidance,
        "clip_skip": clip_skip,
    }
    asked = {**request, "seed": seeds, "num_images": count, "width": width, "height": height, "scheduler": scheduler}

    with _progress(not quiet and sys.stderr is not None and sys.stderr.isatty()) as progress:

        def draw() -> tuple[Pipeline, Result, float]:
            pipe = _open({**source, "local_files_only": local_files_only}, dtype, shard_params, count, progress)
            return pipe, *_draw(pipe, asked, progress)

        pipe, result, loading = _in_background(draw)

    from jaxl import __version__

    images: list[Image.Image] = list(result.images)
    width, height = images[0].size
    found = {
        "width": width,
        "height": height,
        "scheduler": result.scheduler,
        "dtype": str(pipe.dtype),
    }
    drawn = time.perf_counter()
    files = []
    for image, own_seed in zip(images, result.seeds, strict=True):
        settings = {"version": __version__, **source, **request, "seed": own_seed, **found}
        settings = {name: value for name, value in settings.items() if value is not None}
        files.append(str(destination(image, settings)))
        if not as_json:
            _print(files[-1])
    ended = time.perf_counter()
    if not quiet:
        numbers = f"seed {seeds[0]}" if count == 1 else f"{count} images, seeds {seeds[0]} to {seeds[-1]}"
        how = f"{width}x{height}, {steps} steps of {found['scheduler']}, guidance {guidance:g}, {found['dtype']}"
        _note(f"{numbers}: {how}, {ended - began:.1f} s")
    if as_json:
        timings = {**result.timings, "load": loading, "write": ended - drawn, "total": ended - began}
        report = {
            "images": files,
            "seeds": result.seeds,
            "size": f"{width}x{height}",
            "steps": steps,
            "guidance": guidance,
            "scheduler": found["scheduler"],
            "model": model,
            "dtype": found["dtype"],
            "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
            "version": __version__,
        }
        _print(json.dumps(report))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder, a .safetensors file, or tiny.")],
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what a checkpoint is, from its headers and configs; a hub's model is downloaded first.

    \b
    jaxl inspect tiny
    jaxl inspect ./sdxl.safetensors --json
    """
    report = _in_background(
        lambda: _inspect(model=model, variant=variant, revision=revision, local_files_only=local_files_only)
    )
    if as_json:
        _print(json.dumps(report))
        return
    for name in ("model", "family", "prediction_type", "scheduler", "size"):
        _print(f"{name.replace('_', ' '):<16}{report[name]}")
    _print("")
    rows = [["component", "parameters", "bytes", "dtype"]]
    for part in (*report["components"], {**report, "name": "all"}):
        rows.append([part["name"], f"{part['parameters']:,}", f"{part['bytes']:,}", ", ".join(part["dtypes"])])
    for row in rows:
        _print(f"{row[0]:<16}{row[1]:>15}{row[2]:>16}  {row[3]}")
    _print("")
    for file in report["files"]:
        _print(file)


@app.command()
def devices(as_json: JsonOption = False) -> None:
    """List the devices that jax finds."""

    def find() -> dict[str, Any]:
        import jax

        found = _devices()
        return {
            "platform": found[0].platform,
            "count": len(found),
            "jax": jax.__version__,
            "devices": [
                {"id": device.id, "kind": device.device_kind, "memory_bytes": _memory_bytes(device)} for device in found
            ],
        }

    report = _in_background(find)
    if as_json:
        _print(json.dumps(report))
        return
    _print(f"{report['count']} on {report['platform']}, jax {report['jax']}")
    for device in report["devices"]:
        memory = device["memory_bytes"]
        _print(f"{device['id']:>3}  {device['kind']}" + (f"  {memory / 2**30:.1f} GiB" if memory else ""))


def _open(
    source: dict[str, Any], dtype: str, shard_params: bool, images: int, progress: ShowProgress | None
) -> Pipeline:
    """Open the checkpoint without its parameters, for no more devices than there are images, or for all of them."""
    import jax.numpy as jnp

    from jaxl.pipeline import Pipeline
    from jaxl.programs import enable_disk_cache
    from jaxl.sharding import make_mesh
    from jaxl.weights.source import open_checkpoint

    found = _devices()
    if progress is None:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if dtype == "auto":
        dtype = "float32" if found[0].platform == "cpu" else "bfloat16"
    enable_disk_cache()
    mesh = make_mesh(found if shard_params else found[:images])
    return Pipeline(open_checkpoint(**source), dtype=jnp.dtype(dtype), mesh=mesh, shard_params=shard_params)


def _draw(pipe: Pipeline, asked: dict[str, Any], progress: ShowProgress | None) -> tuple[Result, float]:
    """Load while the programs compile, and generate; also the seconds that loading took."""
    import jax

    plan = pipe.plan(**asked)
    bucket = plan.bucket
    began = time.perf_counter()
    try:
        pipe.programs.compile(bucket)
        params = pipe.load_params(progress)
        loading = time.perf_counter() - began
        return pipe.run(params, plan, progress=progress), loading
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise JaxlError(
            f"out of memory for {bucket.batch} images of {bucket.width}x{bucket.height}; "
            "draw fewer or smaller ones, or use --shard-params on several devices"
        ) from error


def _inspect(**source: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from jaxl.diffusion.tables import SCHEDULERS, scheduler_name
    from jaxl.model import Model
    from jaxl.weights.contents import components, family
    from jaxl.weights.source import open_checkpoint

    checkpoint = open_checkpoint(**source)
    model = Model.from_configs(checkpoint.configs)
    parts = components(checkpoint)
    own = model.scheduler.scheduler  # inspecting does not ask that jaxl can run it
    return {
        "model": checkpoint.source,
        "family": family(model.unet),
        "prediction_type": model.scheduler.noise.prediction_type,
        "scheduler": scheduler_name(model.scheduler) if own in SCHEDULERS else own,
        "size": f"{model.default_size}x{model.default_size}",
        "parameters": sum(part.parameters for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "dtypes": sorted({dtype for part in parts for dtype in part.dtypes}),
        "components": [asdict(part) for part in parts],
        "files": [str(file) for file in checkpoint.files()],
    }


def _devices() -> list[Any]:
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS names what is not there
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f" for JAX_PLATFORMS={platforms}" if platforms else ""
        raise JaxlError(f"jax finds no device{asked}{f' ({error})' if str(error) else ''}") from error


def _memory_bytes(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("bytes_limit")


def _width_height(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", size)
    if match is None:
        raise InputError("size", size, "give WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(match[1]), int(match[2])


def _destination(output: str, count: int) -> Callable[[Image.Image, dict[str, Any]], Path]:
    """What writes an image with its settings, and returns where. Raises InputError if nothing can be written there.

    Into a folder go new files with their seeds as names; a file's name is taken as it is, or numbered.
    """
    from jaxl.png import check_writable, write_new_png, write_png

    path = Path(output)
    folder = path.is_dir() or path.suffix.lower() != ".png" or output.endswith(("/", os.sep))
    if folder and path.suffix.lower() in OTHER_FORMATS and not path.is_dir():
        raise InputError("output", output, f"only PNG is written; give {path.with_suffix('.png').name!r}, or a folder")
    check_writable("output", path, folder=folder)

    def write(image: Image.Image, settings: dict[str, Any]) -> Path:
        if not folder and count == 1:
            write_png(path, image, settings)
            return path
        if folder:
            name = path / f"jaxl-{settings['seed']}.png"
            names = itertools.chain([name], (name.with_stem(f"{name.stem}-{i}") for i in itertools.count(2)))
        else:
            names = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1))
        return write_new_png(names, image, settings)

    return write


def _in_background(work: Callable[[], T]) -> T:
    """Wait for `work` in another thread, so that Ctrl-C is obeyed at once, even in the middle of a long computation."""
    future: Future[T] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to the main thread
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future.result()


@contextmanager
def _progress(shown: bool) -> Iterator[ShowProgress | None]:
    """What shows progress on standard error, or None."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            bars.start()  # not earlier, because a download has bars of its own
            tasks[stage] = bars.add_task(STAGES[stage], total=total)
        bars.update(tasks[stage], completed=done)

    try:
        yield show
    finally:
        bars.stop()


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings, and what libraries log as such, as one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jaxl: warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", TruncationWarning)
            warnings.showwarning = lambda message, *_: _note(f"warning: {_one_line(str(message))}")
            yield
    finally:
        logging.getLogger().removeHandler(handler)


def _message(error: JaxlError | typer.TyperException) -> str:
    if isinstance(error, typer.TyperException):
        return error.format_message()
    if isinstance(error, InputError):
        flag = FLAGS.get(error.argument, f"--{error.argument.replace('_', '-')}")
        return f"{flag} {str(error).removeprefix(f'{error.argument}=')}"
    return str(error)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 1000 else f"{text[:997]}..."


def _fail(code: int, message: str) -> int:
    _note(f"error: {_one_line(message)}")
    return code


def _note(line: str) -> None:
    with suppress(OSError):  # there is nowhere else to say it
        print(f"jaxl: {line}", file=sys.stderr, flush=True)


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # nobody reads any more
        raise typer.Exit(1) from None
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}") from error
