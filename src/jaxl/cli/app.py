"""The command `jaxl`.

Results go to standard output, everything else to standard error. Exit status: 0 done; 2 bad input and 1 failure, each
with one line that says what; 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from jaxl.cli.bench import app as bench
from jaxl.cli.bench_serve import bench_serve
from jaxl.cli.cache import cache
from jaxl.cli.compile import compile_programs
from jaxl.cli.demo import demo
from jaxl.cli.estimate import estimate
from jaxl.cli.generate import generate
from jaxl.cli.machine import find_devices, memory_bytes
from jaxl.cli.options import JsonOption, LocalOption, RevisionOption, VariantOption
from jaxl.cli.serve import serve
from jaxl.cli.terminal import fail, in_background, note, one_line, print_line
from jaxl.errors import CheckpointError, InputError, JaxlError, PromptWarning, respelled

INTERRUPTED = 130

QUOTES = "'\""

# the command's names for arguments of `Pipeline.generate`, where not the same
FLAGS = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "negative_prompt_2": "--negative-2",
    "num_images": "--count",
    "guidance_scale": "--guidance",
    "height": "--size, height",
    "width": "--size, width",
    "image": "--init-image",
    "pag_scale": "--pag",
    "padding_mask_crop": "--mask-padding",
    "denoising_end": "--refiner-at",
    "timestep_spacing": "--spacing",
    "token": "HF_TOKEN in the environment",
    "url": "URL",
    "results": "RESULTS",
    "JAXL_API_KEYS": "JAXL_API_KEYS",
    "JAXL_CACHE_DIR": "JAXL_CACHE_DIR",
}

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line of this process and exit."""
    if sys.stdout is not None:  # names of files may be any bytes
        sys.stdout.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # the reader is gone
                stream.flush()
    # Programs may still be compiling, in threads that can neither be stopped nor outlive the interpreter; and taking
    # compiled ones apart, as the interpreter would, keeps the user waiting 0.4 s for nothing.
    os._exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line, and return its exit status."""
    try:
        with _plain_warnings():
            code = typer.main.get_command(app).main(argv, prog_name="jaxl", standalone_mode=False) or 0
    except (InputError, CheckpointError, typer.TyperException) as error:
        return fail(2, _message(error))
    except JaxlError as error:
        return fail(1, _message(error))
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        note("interrupted")
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

        print_line(f"jaxl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print_line(context.get_help())


app.command()(generate)
app.command()(serve)
app.command()(demo)
bench.command("serve")(bench_serve)
app.add_typer(bench, name="bench")
app.command("compile")(compile_programs)
app.command()(cache)
app.command()(estimate)


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
    report = in_background(
        lambda: _inspect(model=model, variant=variant, revision=revision, local_files_only=local_files_only)
    )
    if as_json:
        print_line(json.dumps(report))
        return
    for name in ("model", "family", "prediction_type", "scheduler", "preset", "size"):
        more = f" (by {report['prediction_type_by']})" if name == "prediction_type" else ""
        print_line(f"{name.replace('_', ' '):<16}{report[name]}{more}")
    print_line("")
    rows = [["component", "parameters", "bytes", "dtype"]]
    for part in (*report["components"], {**report, "name": "all"}):
        rows.append([part["name"], f"{part['parameters']:,}", f"{part['bytes']:,}", ", ".join(part["dtypes"])])
    for row in rows:
        print_line(f"{row[0]:<16}{row[1]:>15}{row[2]:>16}  {row[3]}")
    for name in report["missing"]:
        print_line(f"{name:<16}{'-':>15}{'-':>16}  give one with --{name}")
    print_line("")
    for file in report["files"]:
        print_line(file)


@app.command()
def devices(as_json: JsonOption = False) -> None:
    """List the devices that jax finds."""

    def find() -> dict[str, Any]:
        import jax

        found = find_devices()
        return {
            "platform": found[0].platform,
            "count": len(found),
            "jax": jax.__version__,
            "devices": [
                {"id": device.id, "kind": device.device_kind, "memory_bytes": memory_bytes(device)} for device in found
            ],
        }

    report = in_background(find)
    if as_json:
        print_line(json.dumps(report))
        return
    print_line(f"{report['count']} on {report['platform']}, jax {report['jax']}")
    for device in report["devices"]:
        memory = device["memory_bytes"]
        print_line(f"{device['id']:>3}  {device['kind']}" + (f"  {memory / 2**30:.1f} GiB" if memory else ""))


def _inspect(**source: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from jaxl.diffusion.schedulers import SCHEDULERS
    from jaxl.diffusion.tables import scheduler_name
    from jaxl.presets import SDXL_BASE, choose_preset
    from jaxl.run.model import Model
    from jaxl.weights.contents import components, family
    from jaxl.weights.source import open_checkpoint

    checkpoint = open_checkpoint(**source)
    missing = [name for name in ("vae",) if name not in checkpoint.configs]
    model = Model.from_configs({**{name: SDXL_BASE[name] for name in missing}, **checkpoint.configs})
    parts = components(checkpoint)
    own = model.scheduler.scheduler  # also of a scheduler that jaxl cannot run
    return {
        "model": checkpoint.source,
        "family": family(model.unet),
        "prediction_type": model.scheduler.noise.prediction_type,
        "prediction_type_by": checkpoint.predicts_by,
        "preset": str(choose_preset(None, checkpoint.source, model.preset)),
        "scheduler": scheduler_name(model.scheduler) if own in SCHEDULERS else own,
        "size": f"{model.default_size}x{model.default_size}",
        "parameters": sum(part.parameters for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "dtypes": sorted({dtype for part in parts for dtype in part.dtypes}),
        "components": [asdict(part) for part in parts],
        "missing": missing,
        "files": [str(file) for file in checkpoint.files()],
    }


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings, and those that libraries log, as one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jaxl: warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", PromptWarning)
            warnings.showwarning = lambda message, *_: note(f"warning: {one_line(str(message))}")
            yield
    finally:
        logging.getLogger().removeHandler(handler)


def _message(error: JaxlError | typer.TyperException) -> str:
    if isinstance(error, typer.TyperException):
        return error.format_message()
    if isinstance(error, InputError):
        return f"{_flag(error.argument)} {error.shown}: {respelled(error.remedy, _flag)}"
    return respelled(str(error), _flag)


def _flag(argument: str, value: str | None = None) -> str:
    """Return an argument as users write it on the command line."""
    flag = FLAGS.get(argument, f"--{argument.replace('_', '-')}")
    return flag if value is None else f"{flag} {value.strip(QUOTES)}"
