"""`jaxl compile`."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxl.call.hires import Hires
from jaxl.call.sizes import read_size
from jaxl.cli.generate import Opener
from jaxl.cli.options import (
    DtypeOption,
    JsonOption,
    LocalOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SplitOption,
    UnetOption,
    VaeOption,
    VariantOption,
)
from jaxl.cli.terminal import in_background, print_line, progress_bars, to_terminal
from jaxl.errors import InputError, JaxlError, is_out_of_memory
from jaxl.server.settings import read_scales

# jax, and what imports it, is imported when there is something to compile, so that help and usage errors come at once
if TYPE_CHECKING:
    from jaxl.pipeline import Pipeline, ShowProgress
    from jaxl.run.bucket import Bucket


def compile_programs(
    model: ModelOption = "tiny",
    sizes: Annotated[
        str | None, typer.Option(metavar="WxH,...", help="Pixels; the model's own size by default.")
    ] = None,
    batches: Annotated[str, typer.Option(metavar="N,...", help="Numbers of images at once.")] = "1",
    guided: Annotated[
        bool | None,
        typer.Option(
            "--guided/--unguided",
            show_default=False,
            help="For a guidance above 1, or of 1; the model's own by default.",
        ),
    ] = None,
    hires: Annotated[
        str | None, typer.Option(metavar="X,...", help="For second passes too, so many times as large.")
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="For larger images in tiles of this size.")
    ] = None,
    tile_overlap: Annotated[int | None, typer.Option(metavar="PIXELS", help="What these share.")] = None,
    unet: UnetOption = None,
    vae: VaeOption = None,
    vae_tile: Annotated[int | None, typer.Option(metavar="PIXELS", help="Decode in tiles of this size.")] = None,
    dtype: DtypeOption = "auto",
    precision: Annotated[str | None, typer.Option(metavar="NAME", help="fp8 or int8 for most of the model.")] = None,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    shard_params: Annotated[
        bool, typer.Option("--shard-params", help="For weights that are split over all devices.")
    ] = False,
    split: SplitOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compile programs ahead of time, so that jaxl generate and the library start from the cache.

    \b
    jaxl compile --model ./sdxl.safetensors --sizes 1024x1024,832x1216 --batches 1,4
    jaxl generate "a lighthouse" --model ./sdxl.safetensors --size 832x1216 -n 4

    No weights are loaded. One line for each program: its name, what it is for, the seconds until it was there, and
    whether it was compiled or in the cache already. They are for the devices that jaxl generate takes: all, but no more
    than it has work for. Programs for pictures to start from, previews, perturbed attention, FreeU and prompts of more
    than 75 tokens are compiled when they are asked for.
    """
    scales = read_scales(() if hires is None else hires.split(","))
    asked = [(width, height, n) for width, height in _sizes(sizes) for n in _batches(batches)]

    in_tiles: Any = {"tile_size": tile_size, "tile_overlap": tile_overlap}

    with progress_bars(not quiet and to_terminal()) as progress:

        def compile_all() -> list[Compiled]:
            from jaxl.call.tiles import read_tiles

            opened: dict[int, Pipeline] = {}  # by number of images, each on as many devices as draw that number
            pipes: dict[int, Pipeline] = {}  # by number of devices
            work: list[tuple[Pipeline, Bucket]] = []
            for width, height, images in asked:
                if images not in opened:
                    opened[images] = Opener(dtype, shard_params, images, local_files_only, progress, split=split)(
                        model,
                        revision=revision,
                        variant=variant,
                        unet=unet,
                        vae=vae,
                        vae_tile=vae_tile,
                        precision=precision,
                    )
                pipe = pipes.setdefault(opened[images].mesh.size, opened[images])
                if pipe.quantised is not None and pipe.quantised.chosen is None:
                    remedy = (
                        "its layers are chosen when the model is first loaded; draw a picture with it, then compile"
                    )
                    raise InputError("precision", precision, remedy)
                way = pipe.preset.guidance_scale > 1 if guided is None else guided
                tiles = read_tiles(in_tiles, pipe.model)
                bucket = pipe.bucket(images, height, width, guided=way, tiles=tiles)
                work.append((pipe, bucket))
                for scale in scales:
                    _, (wide, high) = Hires(scale=scale).sizes((bucket.width, bucket.height), pipe.model.vae.factor)
                    work.append((pipe, pipe.bucket(images, high, wide, guided=way, tiles=tiles)))
            _keep_all()
            return list(_compile(list(dict.fromkeys(work)), progress))

        programs = in_background(compile_all)

    if as_json:
        print_line(json.dumps({"programs": [asdict(each) for each in programs]}))
        return
    for each in programs:
        print_line(each.line())


@dataclass(frozen=True)
class Compiled:
    """A program that is in the cache now. `seconds` is the time waited for it; `cached` if it was there before."""

    program: str
    size: str
    batch: int
    guided: bool
    devices: int
    seconds: float
    cached: bool

    def line(self) -> str:
        what = f"{self.size}, {self.batch} on {self.devices}, {'guided' if self.guided else 'unguided'}"
        return f"{self.program:<12}{what:<36}{self.seconds:>8.1f} s  {'in the cache' if self.cached else 'compiled'}"


def _compile(work: list[tuple[Pipeline, Bucket]], progress: ShowProgress | None) -> Iterator[Compiled]:
    """Yield programs as they become ready, one bucket after another; a program that buckets share comes once."""
    import jax

    read: set[str] = set()

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            read.add(threading.current_thread().name)

    jax.monitoring.register_event_listener(listen)
    try:
        yield from _ready(work, progress, read)
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _ready(work: list[tuple[Pipeline, Bucket]], progress: ShowProgress | None, read: set[str]) -> Iterator[Compiled]:
    """Yield the programs for `_compile`; `read` are the names of the threads that found theirs in the cache."""
    import jax

    from jaxl.run.programs import PICTURE

    done, total = 0, len(work) * len(PICTURE)
    known: set[Future[Any]] = set()
    for pipe, bucket in work:
        began = time.perf_counter()
        read.clear()
        for program, future in zip(PICTURE, pipe.programs.compile(bucket), strict=True):
            if progress is not None:
                progress("compile", done, total)
            try:
                future.result()
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                what = f"{program.name} of {bucket.batch} images of {bucket.width}x{bucket.height}"
                raise JaxlError(f"{what} does not fit into the memory; give fewer or smaller ones") from error
            done += 1
            if future not in known:
                known.add(future)
                size = f"{bucket.width}x{bucket.height}"
                seconds = round(time.perf_counter() - began, 2)
                # the name of the program's thread
                cached = f"compile {program.name}" in read
                yield Compiled(program.name, size, bucket.batch, bucket.guided, pipe.mesh.size, seconds, cached)


def _keep_all() -> None:
    """Keep programs that compile quickly too. Raises JaxlError if none are kept."""
    import jax

    if not jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        raise JaxlError("there is no folder to keep programs in, so compiling ahead serves nothing")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _sizes(text: str | None) -> list[tuple[int | None, int | None]]:
    """Return widths and heights, each pair once; None is the model's own."""
    if text is None:
        return [(None, None)]
    sizes = [read_size(part) for part in text.split(",")]
    if None in sizes:
        raise InputError("sizes", text, "give WIDTHxHEIGHT in pixels, such as 1024x768, with commas between several")
    return list(dict.fromkeys(size for size in sizes if size))


def _batches(text: str) -> list[int]:
    """Return whole numbers of at least 1, each once."""
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,6}", part) and int(part) for part in parts):
        raise InputError("batches", text, "give whole numbers of at least 1 with commas between them")
    return list(dict.fromkeys(int(part) for part in parts))
