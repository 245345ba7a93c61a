"""A server under one load after another: one that runs, or two of our own, of which the second does not let join."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from PIL import Image

from jaxl import __version__
from jaxl.bench.load import Load, httpx, measure, measure_capacity
from jaxl.bench.report import ReportTable
from jaxl.errors import InputError, JaxlError
from jaxl.png import write_png

LoadResults = dict[str, Any]

COMMAND = (sys.executable, "-m", "jaxl", "serve", "--port", "0")
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
IN_FLIGHT = 32
READY_SECONDS = 3600.0  # a large model is loaded, and compiled for each of its sizes
STOP_SECONDS = 120.0


def run(
    *,
    url: str | None = None,
    options: Sequence[str] = (),
    static: bool = True,
    rates: Sequence[float] | None = None,
    shares: Sequence[float] = SHARES,
    seconds: float = 60.0,
    steps: Sequence[int] = (20,),
    size: str | None = None,
    images: int = 1,
    stream_share: float = 0.0,
    previews: int = 2,
    cancel_share: float = 0.0,
    malformed_share: float = 0.0,
    deadline: float | None = None,
    models: Sequence[str] = (),
    api_keys: Sequence[str] = (),
    variety: int = 1000,
    seed: int = 0,
    check: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> LoadResults:
    """Measure the server at `url`; without it, one started with the `options` of `jaxl serve`, and a static one too.

    rates: images a second, each for `seconds`. Without them they are `shares` of what the first server draws at most,
        which is measured for as long, with 32 images asked for at any time.
    tell: hears what is being done. The others: see `Load` and `measure`.

    Raises InputError and JaxlError.
    """
    load = Load(
        url or "",
        seconds=seconds,
        steps=tuple(steps),
        size=size,
        images=images,
        stream_share=stream_share,
        previews=previews,
        cancel_share=cancel_share,
        malformed_share=malformed_share,
        deadline=deadline,
        models=tuple(models),
        api_keys=tuple(api_keys),
        variety=variety,
        seed=seed,
    )
    for name, numbers in (("rates", (1.0,) if rates is None else rates), ("shares", shares)):
        if not numbers or not all(number > 0 for number in numbers):
            raise InputError(name, numbers, "give numbers above 0")
    load.check()
    servers = (
        {"server": None} if url else {"joining": options, **({"static": [*options, "--static"]} if static else {})}
    )
    capacity, found = None, {}
    for name, started in servers.items():
        if started is not None:
            tell(f"{name}: starting jaxl serve")
        with nullcontext(url) if started is None else serving(started) as address:
            load = replace(load, url=address)
            if rates is None:
                tell(f"{name}: as many images as it draws, for {seconds:g} s")
                capacity = measure_capacity(load, IN_FLIGHT)
                rates = [share * capacity for share in shares]
            found[name] = []
            for rate in rates:
                tell(f"{name}: {rate:.3g} images/s for {seconds:g} s")
                found[name].append(asdict(measure(replace(load, rate=rate), check=check)))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), "jaxl": __version__},
        "url": url,
        "options": list(options),
        "load": {name: value for name, value in asdict(load).items() if name not in ("url", "rate", "api_keys")},
        "capacity": capacity,
        "servers": found,
    }


@contextmanager
def serving(options: Sequence[str]) -> Iterator[str]:
    """The address of a `jaxl serve` with these options, once it is ready; it is stopped in the end.

    Raises InputError or JaxlError with what the server says, if it stops by itself.
    """
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            [*COMMAND, *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            _wait_until_ready(server, address, options, said)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def table(results: LoadResults) -> ReportTable:
    """A row for each server and rate."""
    header = (
        *("server", "offered, /s", "achieved, /s", "goodput, /s", "mean, s", "p50, s", "p95, s", "p99, s"),
        *("slowdown, p99", "first preview, p50, s", "busy", "requests", "refused", "unexpected", "wrong images"),
    )
    rows = [[name, *_cells(report)] for name, reports in results["servers"].items() for report in reports]
    return ReportTable("jaxl bench serve", header, rows)


def write_plots(folder: Path, results: LoadResults) -> list[str]:
    """Write serve_latency.png and serve_throughput.png; returns their names."""
    servers = results["servers"]
    latency = {
        f"{name}, {label}": _line(reports, lambda report, key=key: (report["latency_s"] or {}).get(key))
        for name, reports in servers.items()
        for key, label in (("mean", "mean"), ("p99", "p99"))
    }
    throughput = {
        f"{name}, {label}": _line(reports, lambda report, key=key: report[key])
        for name, reports in servers.items()
        for key, label in (("achieved", "achieved"), ("goodput", "in time"))
    }
    top = max(x for line in throughput.values() for x, _ in line)
    throughput["as asked for"] = [(0.0, 0.0), (top, top)]
    for file, title, lines in (
        ("serve_latency.png", "latency, s", latency),
        ("serve_throughput.png", "images/s", throughput),
    ):
        write_png(folder / file, _draw(title, {name: line for name, line in lines.items() if line}), None)
    return ["serve_latency.png", "serve_throughput.png"]


Line = list[tuple[float, float]]


def _wait_until_ready(server: subprocess.Popen[str], address: str, options: Sequence[str], said: IO[str]) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            said.seek(0)
            last = (said.read().strip().splitlines() or [f"exit status {server.returncode}"])[-1]
            if last.startswith("{"):  # of its log, which it writes once it listens
                last = json.loads(last)["message"]
            message = f"jaxl serve says: {last.removeprefix('jaxl: error: ')}"
            if server.returncode == 2:
                raise InputError("serve", " ".join(options), message)
            raise JaxlError(message)
        with suppress(httpx.HTTPError):  # it has stopped, or its address is yet to come
            if httpx.get(f"{address}/health/ready").status_code == 200:
                return
        time.sleep(0.2)
    raise JaxlError(f"jaxl serve is not ready after {READY_SECONDS:g} s")


def _cells(report: dict[str, Any]) -> list[str]:
    def cell(name: str, key: str, digits: int = 3) -> str:
        return "-" if report[name] is None else f"{report[name][key]:.{digits}f}"

    return [
        f"{report['offered']:.3f}",
        f"{report['achieved']:.3f}",
        "-" if report["goodput"] is None else f"{report['goodput']:.3f}",
        *(cell("latency_s", key) for key in ("mean", "p50", "p95", "p99")),
        cell("slowdown", "p99", 2),
        cell("first_preview_s", "p50"),
        f"{report['utilisation']:.0%}",
        str(report["requests"]),
        str(report["statuses"].get("429", 0)),
        str(report["unexpected"]),
        f"{report['wrong_images']} of {report['checked_images']}",
    ]


def _line(reports: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> Line:
    """A value of each report by the rate that was asked for, where there is one."""
    found = sorted((report["rate"], value(report)) for report in reports if value(report) is not None)
    return [(rate, each) for rate, each in found if each is not None]


def _draw(title: str, lines: dict[str, Line]) -> Image.Image:
    """Lines over the rate; those of one server have one colour, the second of them is dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours: dict[str, str] = {}
    for name, line in lines.items():
        rates, values = zip(*line, strict=True)
        if name == "as asked for":
            axes.plot(rates, values, ":", color="grey", label=name, linewidth=1)
            continue
        server = name.partition(",")[0]
        style = "--" if server in colours else "-"
        colour = colours.setdefault(server, f"C{len(colours)}")
        axes.plot(rates, values, style, color=colour, label=name, marker="o", markersize=4)
    axes.set_xlabel("load, images/s")
    axes.set_ylabel(title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=2)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image.open(stream)
