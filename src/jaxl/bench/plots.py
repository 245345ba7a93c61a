"""Plots of results by chip and batch, with matplotlib."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from jaxl.errors import InputError
from jaxl.extras import install_command
from jaxl.png import write_png

Bars = Mapping[str, Mapping[int, tuple[float, float, float]]]  # series -> batch -> median, least, most


def check_matplotlib() -> None:
    """Raise InputError, naming the remedy, if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("output", "plots", f"they need matplotlib; {install_command('bench')}")


def write_plots(folder: Path, results: dict[str, Any]) -> list[str]:
    """Write latency.png, throughput.png and, where chips have prices, images_per_usd.png; returns their names."""
    written = []
    for name, title, values in (
        ("latency.png", "latency, s", _latency),
        ("throughput.png", "images/s/chip", _throughput),
        ("images_per_usd.png", "images/$", _images_per_usd),
    ):
        bars = _bars(results, values)
        if bars:
            write_png(folder / name, _draw(title, bars), None)
            written.append(name)
    return written


Values = Callable[[dict[str, Any]], dict[str, tuple[float, float, float]]]


def _bars(results: dict[str, Any], values: Values) -> Bars:
    """Return the `values` of each row, jaxl first, in series that are named for what differs between them."""
    found = [(report, row) for report in results["reports"] for row in report["rows"]]
    facts = [
        (
            f"{Path(report['model']).name} {report['dtype']}",
            report["machine"]["device_kind"],
            f"x{row['devices']}",
            row["size"],
            f"{row['steps']} steps",
            row["scheduler"],
        )
        for report, row in found
    ]
    differ = [i for i, column in enumerate(zip(*facts, strict=True)) if i == 1 or len(set(column)) > 1]
    bars: dict[str, dict[int, tuple[float, float, float]]] = {}
    for fact, (_, row) in zip(facts, found, strict=True):
        for program, value in values(row).items():
            series = " ".join([program, *(fact[i] for i in differ)])
            bars.setdefault(series, {})[row["batch"]] = value
    return bars


def _latency(row: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    programs = {"jaxl": row, **row["peers"]}
    spreads = {name: each["latency_s"] for name, each in programs.items() if each["latency_s"]}
    return {name: (each["median"], each["min"], each["max"]) for name, each in spreads.items()}


def _throughput(row: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    return {name: tuple(row["batch"] / s for s in (each[0], each[2], each[1])) for name, each in _latency(row).items()}


def _images_per_usd(row: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    per_usd = row["images_per_usd"]
    if per_usd is None:
        return {}
    return {
        name: tuple(value * per_usd / row["images_per_s_per_chip"] for value in each)
        for name, each in _throughput(row).items()
    }


def _draw(title: str, bars: Bars) -> Image.Image:
    """Groups of bars, one group for each batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    batches = sorted({batch for each in bars.values() for batch in each})
    width = 0.8 / len(bars)
    figure = Figure(figsize=(max(6.0, 1.2 + 0.5 * len(bars) * len(batches)), 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i, (series, values) in enumerate(bars.items()):
        places = [batches.index(batch) + (i + 0.5) * width - 0.4 for batch in values]
        heights = [median for median, _, _ in values.values()]
        errors = [
            [median - least for median, least, _ in values.values()],
            [most - median for median, _, most in values.values()],
        ]
        drawn = axes.bar(places, heights, width * 0.92, label=series, yerr=errors, capsize=3)
        axes.bar_label(drawn, fmt=lambda x: f"{x:,.0f}" if x >= 1000 else f"{x:.3g}", fontsize=8, padding=2)
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlabel("batch, images at once on each chip")
    axes.set_ylabel(f"{title} (median, least to most)")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=1)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image.open(stream)
