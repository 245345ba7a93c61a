"""What was measured, as JSON, as tables and as Markdown.

Results are `{"prices": [...], "reports": [...]}`: a report is one run on one machine, and holds a row for each
workload. Several files' reports make one table.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxl.bench.prices import Price, price_of
from jaxl.errors import InputError

if TYPE_CHECKING:
    from jaxl.bench.measure import WorkloadRow
    from jaxl.bench.startup import Startup

Results = dict[str, Any]
ROW_KEYS = ("devices", "size", "batch", "steps", "scheduler")
NOTES = """\
Batch is the number of images at once on each chip. Latency is a whole call, from prompt to pictures on the host; the
median. A step is one call of the network for all images (two branches with guidance above 1), the loop's own work
included; decode is the VAE for one image of each chip. Compile is near 0 where an earlier row needed the same programs.
Memory is the peak so far of the fullest chip, or of the whole process where chips do not tell. Images/$ are those of
one chip in an hour over its price. The fastest peer is that with the least ratio, its time over jaxl's."""
WORDS = ("model", "chip", "size", "scheduler", "peer", "dtype", "fastest peer")  # columns that are not numbers
PACKAGES = ("jaxl", "jax", "jaxlib", "torch", "diffusers")


@dataclass(frozen=True)
class ReportTable:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def make_report(
    rows: Sequence[WorkloadRow],
    startups: Sequence[Startup | None],
    *,
    command: str,
    devices: Sequence[Any],
    **facts: Any,
) -> dict[str, Any]:
    """The report of one run. `devices` are all that jax finds; `facts` go into it as they are."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": {
            "platform": devices[0].platform,
            "device_kind": devices[0].device_kind,
            "devices": len(devices),
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        **facts,
        "rows": [_row(row, startup) for row, startup in zip(rows, startups, strict=True)],
    }


def priced(reports: Iterable[dict[str, Any]], prices: Sequence[Price]) -> Results:
    """Results with the images that a dollar pays for in each row, None where the chip has no price."""
    return {
        "prices": [asdict(price) for price in prices],
        "reports": [{**report, "rows": [_priced(row, report, prices) for row in report["rows"]]} for report in reports],
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    """The reports in a results.json. Raises InputError if it is none."""
    remedy = "give a results.json that jaxl bench wrote"
    try:
        reports = json.loads(path.read_text(encoding="utf-8"))["reports"]
        tables(priced(reports, []))
    except OSError as error:
        raise InputError("results", str(path), f"{error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("results", str(path), remedy) from None
    return reports


def tables(results: Results) -> list[ReportTable]:
    """Speed, where the time and the memory go, and the peers, if there were any."""
    found = [(report, row) for report in results["reports"] for row in report["rows"]]
    named = len({_setting(report) for report, _ in found}) > 1
    keys = (*(["model"] if named else []), "chip", "chips", "size", "batch", "steps", "scheduler")
    against = any(row["peers"] for _, row in found)
    speed = (*keys, "latency, s", "min - max", "images/s", "images/s/chip", "images/$")
    speed += ("fastest peer", "ratio") if against else ()
    parts = (*keys, "step, ms", "decode, ms", "load, s", "compile, s", "memory, GiB", "compiled after warm-up")
    first = (*keys, "cold, s", "min - max", "warm, s", "min - max")
    beside = (*keys, "peer", "dtype", "step, ms", "ratio", "min - max", "latency, s", "ratio", "min - max")

    def key(report: dict[str, Any], row: dict[str, Any]) -> list[str]:
        cells = (report["machine"]["device_kind"], *(str(row[name]) for name in ROW_KEYS))
        return [*([_setting(report)] if named else []), *cells]

    all_tables = (
        ReportTable("Speed", speed, [[*key(*each), *_speed(each[1], against)] for each in found]),
        ReportTable("Parts", parts, [[*key(*each), *_parts(each[1])] for each in found]),
        ReportTable(
            "First image, whole process",
            first,
            [
                [*key(report, row), *_spread(row["startup"]["cold_s"], 2), *_spread(row["startup"]["warm_s"], 2)]
                for report, row in found
                if row["startup"]
            ],
        ),
        ReportTable(
            "Peers (peer_ratio: the peer's time over jaxl's, above 1 where jaxl is faster)",
            beside,
            [
                [*key(report, row), name, report["peers"][name].get("dtype", report["dtype"]), *_peer(peer)]
                for report, row in found
                for name, peer in row["peers"].items()
            ],
        ),
    )
    return [table for table in all_tables if table.rows]


def fastest_peer(row: dict[str, Any]) -> tuple[str, float] | None:
    """Return the peer with the least ratio in a row, and that: of an image, or of a step where no peer draws any."""
    ratios = {name: peer["peer_ratio"] for name, peer in row["peers"].items()}
    drawn = {name: ratio["image"]["median"] for name, ratio in ratios.items() if "image" in ratio}
    found = drawn or {name: ratio["step"]["median"] for name, ratio in ratios.items()}
    return min(found.items(), key=lambda each: each[1], default=None)


def markdown_table(table: ReportTable) -> str:
    rule = ["---" if name in WORDS else "---:" for name in table.header]
    return "\n".join(f"| {' | '.join(line)} |" for line in (table.header, rule, *table.rows))


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """The tables, how they were measured, and the pictures of these names."""
    parts = ["# jaxl bench"]
    for table in tables(results):
        parts += [f"## {table.title}", markdown_table(table)]
    parts += [f"![{Path(name).stem}]({name})" for name in plots]
    parts.append(NOTES)
    for number, report in enumerate(results["reports"], 1):
        machine, versions = report["machine"], report["versions"]
        known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        lines = [
            f"## Run {number}",
            f"- date: {report['date']}",
            f"- command: `{report['command']}`",
            f"- machine: {machine['platform']}, {machine['devices']} x {machine['device_kind']}; "
            f"{machine['cpus']} CPUs, {machine['cpu']}",
            f"- versions: {known}",
            f"- model: {report['model']}, {report['dtype']}, VAE {report['vae_dtype']}; {report['warmup']} calls to "
            f"warm up, {report['runs']} measured",
        ]
        lines += [
            f"- peer {name}: {', '.join(f'{key} {value}' for key, value in facts.items())}"
            for name, facts in report["peers"].items()
        ]
        parts.append("\n".join(lines))
    kinds = [report["machine"]["device_kind"] for report in results["reports"]]
    prices = [Price(**price) for price in results["prices"]]
    used = {price.name: price for kind in kinds if (price := price_of(kind, prices))}
    parts += [
        f"{price.name}: {price.usd_per_chip_hour:g} USD per chip-hour ({price.source}, {price.date})."
        for price in used.values()
    ]
    return "\n\n".join(parts) + "\n"


def _row(row: WorkloadRow, startup: Startup | None) -> dict[str, Any]:
    values = asdict(row)
    workload = values.pop("workload")
    per_chip = row.images_per_s / row.workload.devices
    return {
        **workload,
        "size": row.workload.size,
        "images": row.workload.images,
        **values,
        "images_per_s_per_chip": per_chip,
        "startup": None if startup is None else asdict(startup),
    }


def _priced(row: dict[str, Any], report: dict[str, Any], prices: Sequence[Price]) -> dict[str, Any]:
    price = price_of(report["machine"]["device_kind"], prices)
    per_usd = None if price is None else row["images_per_s_per_chip"] * 3600 / price.usd_per_chip_hour
    return {**row, "images_per_usd": per_usd}


def _setting(report: dict[str, Any]) -> str:
    return f"{Path(report['model']).name} {report['dtype']}"


def _speed(row: dict[str, Any], against: bool) -> list[str]:
    per_usd, fastest = row["images_per_usd"], fastest_peer(row)
    return [
        *_spread(row["latency_s"], 3),
        f"{row['images_per_s']:.3f}",
        f"{row['images_per_s_per_chip']:.3f}",
        "no price" if per_usd is None else f"{per_usd:,.0f}",
        *(() if not against else (fastest[0], f"{fastest[1]:.2f}") if fastest else ("-", "-")),
    ]


def _parts(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['step_ms']['median']:.1f}",
        f"{row['decode_ms']['median']:.1f}",
        f"{row['load_s']:.2f}",
        f"{row['compile_s']:.2f}",
        f"{row['peak_memory_bytes'] / 2**30:.2f}",
        str(row["compilations_after_warmup"]),
    ]


def _peer(peer: dict[str, Any]) -> list[str]:
    step, image = peer["peer_ratio"]["step"], peer["peer_ratio"].get("image")
    cells = [f"{peer['step_ms']['median']:.1f}", *_spread(step, 2)]
    return [*cells, *([f"{peer['latency_s']['median']:.3f}", *_spread(image, 2)] if image else ["-"] * 3)]


def _spread(values: dict[str, float], digits: int) -> list[str]:
    return [f"{values['median']:.{digits}f}", f"{values['min']:.{digits}f} - {values['max']:.{digits}f}"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
