"""Output of the commands, and waiting: results go to standard output, everything else to standard error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import typer

from jaxl.errors import OutputError

if TYPE_CHECKING:
    from jaxl.bench.report import ReportTable
    from jaxl.pipeline import ShowProgress

T = TypeVar("T")

STAGES = {
    "load": "Loading",
    "calibrate": "Measuring",
    "compile": "Compiling",
    "generate": "Drawing",
    "upscale": "Enlarging",
    "write": "Writing",
}


def in_background(work: Callable[[], T]) -> T:
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
def progress_bars(shown: bool) -> Iterator[ShowProgress | None]:
    """Yield a function that shows progress on standard error, or None."""
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


def to_terminal() -> bool:
    """Return whether a person sees standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 1000 else f"{text[:997]}..."


def fail(code: int, message: str) -> int:
    note(f"error: {one_line(message)}")
    return code


def note(line: str) -> None:
    with suppress(OSError):  # there is nowhere else to say it
        print(f"jaxl: {line}", file=sys.stderr, flush=True)


def print_line(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the reader is gone
        raise typer.Exit(1) from None
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}") from error


def print_table(table: ReportTable) -> None:
    """Print a table as wide as the terminal, or in wide lines where there is none."""
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable(*table.header, title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in table.rows:
        drawn.add_row(*row)
    width = None if sys.stdout is not None and sys.stdout.isatty() else 200
    stream = io.StringIO()
    Console(file=stream, width=width).print(drawn)
    print_line("\n".join(line.rstrip() for line in stream.getvalue().splitlines()))
