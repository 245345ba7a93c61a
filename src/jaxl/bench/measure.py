"""Measuring: warm up, take turns, take medians, count what is compiled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax

from jaxl.bench.memory import peak_memory
from jaxl.bench.peers import Peer
from jaxl.bench.workload import PROMPT, Spread, Stages, Workload
from jaxl.call.plan import Plan
from jaxl.errors import JaxlError, is_out_of_memory
from jaxl.pipeline import Params, Pipeline, ShowProgress

# of every program that XLA compiles or reads from disk
COMPILATION = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class PeerRow:
    """The time of a peer for the same work, and `peer_ratio`: its time over jaxl's, above 1 where jaxl is faster.

    A ratio is that of the medians; `min` and `max` are those of single turns. `first_s` is its first call, compilation
    included.
    """

    latency_s: Spread | None
    step_ms: Spread
    decode_ms: Spread | None
    first_s: float
    peak_memory_bytes: int
    peer_ratio: Mapping[str, Spread]


@dataclass(frozen=True)
class WorkloadRow:
    """The measurements of a workload.

    `latency_s` is a whole call of `Pipeline.generate`, from prompt to PIL images. `step_ms` is its loop over the calls
    of the network, for all images at once, and `decode_ms` its VAE for one image of each device, with the way to the
    host. `compile_s` is near 0 where an earlier row compiled the same programs. `peak_memory_bytes` is that of the
    fullest device, or of this process if the device does not tell, since the process began.
    """

    workload: Workload
    latency_s: Spread
    images_per_s: float
    step_ms: Spread
    decode_ms: Spread
    compile_s: float
    load_s: float
    compilations_after_warmup: int
    peak_memory_bytes: int
    peak_memory_of: str
    peers: Mapping[str, PeerRow]


def measure(
    pipes: Mapping[int, Pipeline],
    workloads: Sequence[Workload],
    *,
    warmup: int,
    runs: int,
    peers: Sequence[Peer] = (),
    progress: ShowProgress | None = None,
) -> list[WorkloadRow]:
    """Measure each workload with the pipeline of its number of devices, in turns with `peers`.

    Of `warmup` + `runs` calls the first are not counted; there is at least one of each.
    """
    rows: list[WorkloadRow] = []
    done = 0

    def tick() -> None:
        nonlocal done
        if progress is not None:
            progress("generate", done, len(workloads) * (warmup + runs))
        done += 1

    for count, group in groupby(workloads, lambda each: each.devices):
        pipe = pipes[count]
        began = time.perf_counter()
        params = jax.block_until_ready(pipe.load_params(progress))
        load_s = time.perf_counter() - began
        rows += [_measure(pipe, params, load_s, each, warmup, runs, peers, tick) for each in group]
        del params  # before others are loaded
    return rows


def plan(pipe: Pipeline, workload: Workload) -> Plan:
    """Return the plan of a workload's call of `pipe`. Raises InputError if it cannot."""
    return pipe.plan(PROMPT, **_asked(workload))


def in_turns(
    runners: Mapping[str, Callable[[], Stages]], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[str, list[Stages]]:
    """Run each, one after the other, again and again: what slows the machine down for a while slows all of them."""
    measured: dict[str, list[Stages]] = {name: [] for name in runners}
    for _ in range(rounds):
        tick()
        for name, run in runners.items():
            measured[name].append(run())
    return measured


def ratio(peer: Sequence[float], own: Sequence[float]) -> Spread:
    """The ratio of the medians, and the least and the most of those of single turns."""
    turns = [other / mine for other, mine in zip(peer, own, strict=True)]
    return Spread(statistics.median(peer) / statistics.median(own), min(turns), max(turns))


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that grows by one for each program that jax compiles, or reads from disk, meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILATION:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _asked(workload: Workload) -> dict[str, Any]:
    return {
        "num_images": workload.images,
        "steps": workload.steps,
        "scheduler": workload.scheduler,
        "guidance_scale": workload.guidance_scale,
        "width": workload.width,
        "height": workload.height,
    }


def _measure(
    pipe: Pipeline,
    params: Params,
    load_s: float,
    workload: Workload,
    warmup: int,
    runs: int,
    peers: Sequence[Peer],
    tick: Callable[[], None],
) -> WorkloadRow:
    def run() -> Stages:
        began = time.perf_counter()
        result = pipe.generate(params, PROMPT, **_asked(workload))
        total = time.perf_counter() - began
        return Stages(total, result.timings["denoise"], result.steps, result.timings["decode"])

    runners: dict[str, Callable[[], Stages]] = {"jaxl": run}
    runners |= {peer.name: lambda peer=peer: peer.run(workload) for peer in peers}
    try:
        began = time.perf_counter()
        for program in pipe.compile(plan(pipe, workload)):
            program.result()
        compile_s = time.perf_counter() - began
        first = in_turns(runners, warmup, tick)
        with compilations() as compiled:
            measured = in_turns(runners, runs, tick)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise JaxlError(f"out of memory for {workload}; measure fewer or smaller images") from error
    own = measured.pop("jaxl")
    peak, peak_of = peak_memory(pipe.mesh.local_devices)
    latency = Spread.of(_totals(own))
    return WorkloadRow(
        workload=workload,
        latency_s=latency,
        images_per_s=workload.images / latency.median,
        step_ms=_step_ms(own),
        decode_ms=_decode_ms(own, workload),
        compile_s=compile_s,
        load_s=load_s,
        compilations_after_warmup=len(compiled),
        peak_memory_bytes=peak,
        peak_memory_of=peak_of,
        peers={
            peer.name: _peer_row(workload, own, first[peer.name][0], measured[peer.name], peer.peak_memory())
            for peer in peers
        },
    )


def _peer_row(workload: Workload, own: list[Stages], first: Stages, theirs: list[Stages], peak: int) -> PeerRow:
    ratios = {"step": ratio([each.step for each in theirs], [each.step for each in own])}
    whole = first.total is not None
    if whole:
        ratios["image"] = ratio(_totals(theirs), _totals(own))
    return PeerRow(
        latency_s=Spread.of(_totals(theirs)) if whole else None,
        step_ms=_step_ms(theirs),
        decode_ms=_decode_ms(theirs, workload) if first.decode is not None else None,
        first_s=first.denoise if first.total is None else first.total,
        peak_memory_bytes=peak,
        peer_ratio=ratios,
    )


def _totals(stages: Sequence[Stages]) -> list[float]:
    return [each.total for each in stages if each.total is not None]


def _step_ms(stages: Sequence[Stages]) -> Spread:
    return Spread.of([each.step * 1000 for each in stages])


def _decode_ms(stages: Sequence[Stages], workload: Workload) -> Spread:
    return Spread.of([each.decode * 1000 / workload.batch for each in stages if each.decode is not None])
