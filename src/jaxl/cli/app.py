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
from jaxl.cli.detail import detail
from jaxl.cli.estimate import estimate
from jaxl.cli.flags import flag
from jaxl.cli.fuse import fuse
from jaxl.cli.generate import generate
from jaxl.cli.grid import grid
from jaxl.cli.inspect import inspect
from jaxl.cli.keys import app as keys
from jaxl.cli.machine import find_devices, memory_bytes
from jaxl.cli.options import JsonOption
from jaxl.cli.preprocess import preprocess
from jaxl.cli.serve import serve
from jaxl.cli.terminal import fail, in_background, note, one_line, print_line
from jaxl.cli.upscale import upscale
from jaxl.errors import CheckpointError, InputError, JaxlError, PromptWarning, respelled

INTERRUPTED = 130

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
app.add_typer(keys, name="keys")
app.command("compile")(compile_programs)
app.command()(cache)
app.command()(fuse)
app.command()(preprocess)
app.command()(detail)
app.command()(grid)
app.command()(upscale)
app.command()(estimate)
app.command()(inspect)


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
        return f"{flag(error.argument)} {error.shown}: {respelled(error.remedy, flag)}"
    return respelled(str(error), flag)
