"""`jaxl bench`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxl.bench.workload import PROMPT, Workload, combinations
from jaxl.call.sizes import check_size
from jaxl.cli.bench_loadgen import bench_loadgen
from jaxl.cli.machine import find_chips
from jaxl.cli.options import (
    TIMEOUT,
    CoordinatorOption,
    DistributedOption,
    HostOption,
    Hosts,
    HostsOption,
    JsonOption,
    QuietOption,
    TimeoutOption,
    VaeDtypeOption,
    read_count,
    read_counts,
)
from jaxl.cli.terminal import in_background, note, print_line, print_table, progress_bars, to_terminal
from jaxl.config import Dtype
from jaxl.errors import InputError, JaxlError

# jax, and what imports it, is imported when there is something to measure, so that help and usage errors come at once
if TYPE_CHECKING:
    from jaxl.bench.peers import Opening
    from jaxl.bench.report import Results
    from jaxl.bench.startup import Startup
    from jaxl.pipeline import Pipeline, ShowProgress

AUTO = "auto"


PricesOption = Annotated[Path | None, typer.Option(help="A file in place of jaxl's own prices.toml.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="A folder for results.json, results.md and plots.")
]

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.command("loadgen")(bench_loadgen)


@app.callback()
def bench(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="As in jaxl generate, or random:sdxl, random:mid or random:tiny (random weights).")
    ] = "tiny",
    size: Annotated[
        str | None, typer.Option(metavar="WxH,...", help="Pixels; the model's own size by default.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images at once on each device.")] = "1",
    steps: Annotated[str, typer.Option(metavar="N,...", help="Of the scheduler.")] = "20",
    scheduler: Annotated[str, typer.Option(metavar="NAME,...", help="As in jaxl generate.")] = "euler",
    devices: Annotated[
        str | None, typer.Option(metavar="N,...", help="How many; all by default, 1 beside a peer.")
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale; 1 is off.")] = 5.0,
    dtype: Annotated[Dtype, typer.Option(help="auto is float32 on CPUs and bfloat16 elsewhere.")] = AUTO,
    vae_dtype: VaeDtypeOption = AUTO,
    warmup: Annotated[int, typer.Option(help="Calls before those that count.")] = 1,
    runs: Annotated[int, typer.Option(help="Calls that count.")] = 5,
    startup: Annotated[
        bool, typer.Option("--startup", help="Also time whole jaxl generate processes, cold and warm.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:DTYPE]",
            help="Do the same work beside it: diffusers, torch-compile, openvino, flax, stable-diffusion.cpp. "
            "DTYPE is float32, bfloat16 or float16; jaxl's by default, openvino's own.",
        ),
    ] = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    hosts: HostsOption = None,
    host: HostOption = None,
    timeout: TimeoutOption = TIMEOUT,
    prices: PricesOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure latency, throughput, images per dollar, start-up and memory, for every combination of the options.

    \b
    jaxl bench --batch 1,4 --steps 10,20 --runs 3
    jaxl bench --peer diffusers --peer diffusers:bfloat16 --peer torch-compile
    jaxl bench --model random:sdxl --batch 1,4 --startup --output sdxl

    The article's table, by chip and batch, is the first line on each kind of machine and then the second:

    \b
    jaxl bench --model stabilityai/stable-diffusion-xl-base-1.0 --batch 1,2 --output v5e
    jaxl bench merge v5e/results.json v4/results.json --output table

    Every call counts from prompt to pictures; medians, after a warm-up. If anything is compiled after it, the exit
    status is 1. Peers run in turns with jaxl, each in a process of its own, and peer_ratio is their time over
    jaxl's; the table of speeds has that of the fastest. Of several hosts (--distributed, or --coordinator, --hosts
    and --host) host 0 reports the images of all.
    """
    if context.invoked_subcommand is not None:
        return
    machines = Hosts(distributed, coordinator, hosts, host, timeout)
    for argument, value in (("startup", startup), ("peer", peer)):
        if value and machines.several:
            raise InputError(argument, value, "it is measured on one host; leave it out with several")
    options = _Options(
        model=model,
        sizes=None
        if size is None
        else [check_size("size", part, ", with commas between several") for part in size.split(",")],
        batches=read_counts("batch", batch),
        steps=read_counts("steps", steps),
        schedulers=list(dict.fromkeys(scheduler.split(","))),
        devices=None if devices is None else read_counts("devices", devices),
        guidance=guidance,
        dtype=dtype,
        vae_dtype=vae_dtype,
        warmup=read_count("warmup", warmup),
        runs=read_count("runs", runs),
        startup=startup,
        peers=list(dict.fromkeys(peer or [])),
        quiet=quiet,
    )

    def measure() -> list[dict[str, Any]]:
        with machines.joined() as number, progress_bars(not quiet and to_terminal()) as progress:
            report = in_background(lambda: options.measure(progress))
        if number:  # all hosts measure the same, and the first one reports it
            raise typer.Exit
        return [report]

    _report(measure, prices, output, as_json)
    if not quiet:
        note("0 programs were compiled after the warm-up")


@app.command()
def merge(
    results: Annotated[list[Path], typer.Argument(help="The results.json files of other runs.")],
    prices: PricesOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join the results of other runs in one table; measures nothing."""
    from jaxl.bench.report import read_results

    _report(lambda: [report for path in results for report in read_results(path)], prices, output, as_json)


def _report(
    measure: Callable[[], list[dict[str, Any]]], prices: Path | None, output: Path | None, as_json: bool
) -> None:
    """Print and write the results of `measure`; refuse a folder that cannot be written before it measures."""
    from jaxl.bench.prices import DEFAULT, read_prices
    from jaxl.bench.report import priced, tables

    read = read_prices(prices or DEFAULT)
    if output is not None:
        from jaxl.bench.plots import check_matplotlib
        from jaxl.png import check_writable

        check_matplotlib()
        check_writable("output", output, folder=True)
    reports = measure()
    found = priced(reports, read)
    for table in tables(found):
        print_table(table)
    if output is not None:
        _write(output, found)
    if as_json:
        print_line(json.dumps(found))
    late = sum(row["compilations_after_warmup"] for report in reports for row in report["rows"])
    if late:
        raise JaxlError(f"{late} programs were compiled after the warm-up, and the times include that")


@dataclass(frozen=True)
class _Options:
    """The options of the command; sizes and devices are None where the model and the machine decide."""

    model: str
    sizes: list[tuple[int, int]] | None
    batches: list[int]
    steps: list[int]
    schedulers: list[str]
    devices: list[int] | None
    guidance: float
    dtype: str
    vae_dtype: str
    warmup: int
    runs: int
    startup: bool
    peers: list[str]
    quiet: bool

    def measure(self, progress: ShowProgress | None) -> dict[str, Any]:
        """Return the report of all combinations. Options that cannot work are refused before anything is loaded."""
        from jaxl.bench.peers import Peer, read_peer

        asked = {text: read_peer(text) for text in self.peers}
        if asked:
            if self.devices not in (None, [1]):
                raise InputError("devices", self.devices, "peers run on one; leave it out beside --peer")
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the peers room on a GPU

        import jax

        from jaxl.bench import measure
        from jaxl.bench.report import make_report
        from jaxl.call.options import LoadOptions
        from jaxl.loading import open_pipeline
        from jaxl.run.sharding import make_mesh

        # reading programs from disk would hide how long they take to compile
        jax.config.update("jax_enable_compilation_cache", False)
        path = self._path()
        startups = self._startups(path, progress) if self.startup else None
        found = find_chips()
        counts = self.devices or [1 if self.peers else len(found)]
        if max(counts) > len(found):
            raise InputError("devices", max(counts), f"jax finds {len(found)} here; see jaxl devices")
        if jax.process_count() > 1 and counts != [len(found)]:
            raise InputError("devices", self.devices, "several hosts measure on all they have; leave it out")
        platform = found[0][0].platform
        meshes = {count: make_mesh([device for chip in found[:count] for device in chip]) for count in counts}
        pipes = {
            count: open_pipeline(path, LoadOptions(dtype=self.dtype, vae_dtype=self.vae_dtype, mesh=mesh))
            for count, mesh in meshes.items()
        }
        pipe = pipes[counts[0]]
        workloads = [
            replace(each, scheduler=measure.plan(pipes[each.devices], each).scheduler)
            for each in self._workloads(counts, pipe.model.default_size)
        ]
        openings = self._openings(asked, pipe, workloads, platform)
        with ExitStack() as stack:
            peers = [stack.enter_context(Peer(opening)) for opening in openings]
            rows = measure.measure(pipes, workloads, warmup=self.warmup, runs=self.runs, peers=peers, progress=progress)
            facts = {peer.name: peer.facts for peer in peers}
        return make_report(
            rows,
            startups or [None] * len(rows),
            command=shlex.join(["jaxl", *sys.argv[1:]]),
            devices=[chip[0] for chip in found],
            model=self.model,
            dtype=str(pipe.dtype),
            vae_dtype=_vae_dtype(pipe),
            prompt=PROMPT,
            warmup=self.warmup,
            runs=self.runs,
            peers=facts,
        )

    def _path(self) -> str:
        """Return the model's name or folder; a random model is written first if need be."""
        from jaxl.bench.random_model import RANDOM, random_folder, source_of

        if self.model.startswith(RANDOM) and not self.quiet:
            folder = random_folder(self.model.removeprefix(RANDOM))
            if not folder.exists():
                note(f"writing random weights to {folder}")
        return source_of(self.model)

    def _workloads(self, counts: Sequence[int], side: int) -> list[Workload]:
        return combinations(
            devices=counts,
            sizes=self.sizes or [(side, side)],
            batches=self.batches,
            steps=self.steps,
            schedulers=self.schedulers,
            guidance_scale=self.guidance,
        )

    def _startups(self, path: str, progress: ShowProgress | None) -> list[Startup]:
        """Measure start-ups, before this process takes a device: a TPU, or a GPU's memory, serves one at a time."""
        from jaxl.bench.startup import count_devices, measure_startup
        from jaxl.run.model import Model
        from jaxl.weights.source import open_checkpoint

        counts = self.devices or [1 if self.peers else count_devices()]
        side = Model.from_configs(open_checkpoint(path).configs).default_size
        workloads = self._workloads(counts, side)
        tick = _ticks(progress, 2 * self.runs * len(workloads))
        return [measure_startup(path, each, self.dtype, self.runs, tick) for each in workloads]

    def _openings(
        self,
        asked: Mapping[str, tuple[str, str | None]],
        pipe: Pipeline,
        workloads: Sequence[Workload],
        platform: str,
    ) -> list[Opening]:
        """Return what each peer is to open: the very files that jaxl reads, all in the dtype that is asked for."""
        from jaxl.bench.peers import Opening, check_workload

        folder = pipe.checkpoint.files()[0].parents[1]
        if asked and not (folder / "model_index.json").is_file():
            raise InputError("model", self.model, "peers open folders in diffusers' layout; give one")
        for workload in workloads:
            for name, _ in asked.values():
                check_workload(name, platform, workload.scheduler)
        device = "cuda" if platform == "gpu" else "cpu"
        return [
            Opening(text, name, str(folder), dtype or str(pipe.dtype), dtype or _vae_dtype(pipe), device)
            for text, (name, dtype) in asked.items()
        ]


def _vae_dtype(pipe: Pipeline) -> str:
    import jax

    return str(jax.tree.leaves(pipe.programs.shapes["vae"])[0].dtype)


def _ticks(progress: ShowProgress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        if progress is not None:
            progress("generate", done, total)
        done += 1

    return tick


def _write(folder: Path, results: Results) -> None:
    """Write results.json, results.md and the plots into the folder."""
    from jaxl.bench.plots import write_plots
    from jaxl.bench.report import markdown
    from jaxl.files import write_text

    plots = write_plots(folder, results)
    write_text(folder / "results.md", markdown(results, plots))
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
