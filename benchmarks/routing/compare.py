"""Ways to choose a replica for each request, compared by simulation, and by measurement with two local servers.

    python benchmarks/routing/compare.py [--replicas 2 8 64] [--loads 0.3 0.5 ...] [--plot docs/pictures/routing.png]
    python benchmarks/routing/compare.py --measure [--policies random ...] [--load 0.7] [--requests 100] [--steps 8]

The simulation (`simulation.py`) is of replicas of four TPU v5e chips, which were not there: its step times are the
estimates of docs/chips.md. --measure starts two `jaxl serve` of `tiny`, each on a core of its own, sends them the
same requests by each policy, and simulates these with the step times of both servers at work, which are taken before
and after each policy. Both print tables in Markdown, and end with a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from simulation import (
    POLICIES,
    Machine,
    Outcome,
    Policy,
    Request,
    Traffic,
    simulate,
    summarise,
)

from jaxl.bench.serve import serving
from jaxl.bench.workload import PROMPT
from jaxl.png import write_png

# the sizes that are asked for, with their shares
SIZES = {(1024, 1024): 0.4, (1152, 896): 0.2, (896, 1152): 0.2, (1344, 768): 0.2}
# docs/chips.md, `jaxl estimate --topology v5e-4 --vae-dtype bfloat16`: a step of four images of 1024x1024 on four
# chips, and four decoded, one on each chip
STEP_SECONDS, DECODE_SECONDS = 0.0961, 0.0848
MIXED, SINGLE = "one to four images", "single images"
IMAGES = {MIXED: {1: 0.15, 2: 0.15, 4: 0.7}, SINGLE: {1: 1.0}}
STEPS = (10, 20, 30)
# whole requests go to a replica; or each of their images does, as it comes
WAYS: dict[str, tuple[Policy, bool]] = {name: (policy, True) for name, policy in POLICIES.items()} | {
    f"{name}, image by image": (POLICIES[name], False) for name in ("random", "power-of-two", "bucket-affine")
}
DELAYS = (0.0, 0.5, 2.0, 8.0)

LOCAL_SIZES = ((256, 256), (320, 192))
PLACES = 4
ROUNDS = 2  # of requests by which the servers' step times are taken, for each size


def v5e_4() -> Machine:
    """A step in proportion to the pixels; an image is decoded by four chips, in a quarter of one chip's time."""
    pixels = [width * height / 1024**2 for width, height in SIZES]
    return Machine([STEP_SECONDS * each for each in pixels], [DECODE_SECONDS / 4 * each for each in pixels], PLACES)


def outcome(requests: Sequence[Request], replicas: int, way: str, delay: float = 0.0) -> Outcome:
    policy, together = WAYS[way]
    return summarise(requests, *simulate(requests, v5e_4(), replicas, policy, delay=delay, together=together))


def compare(fleets: Sequence[int], loads: Sequence[float], per_replica: int) -> list[dict[str, Any]]:
    """A row for each traffic, number of replicas, load and way."""
    rows = []
    for traffic, images in IMAGES.items():
        for replicas in fleets:
            for load in loads:
                count = max(per_replica * replicas, 2000)
                requests = Traffic(images, list(SIZES.values()), STEPS).requests(count, load, v5e_4(), replicas)
                for way in WAYS:
                    if traffic == SINGLE and not WAYS[way][1]:
                        continue  # the same
                    found = asdict(outcome(requests, replicas, way))
                    rows.append({"traffic": traffic, "replicas": replicas, "load": load, "way": way, **found})
    return rows


def compare_delays(replicas: int, load: float, per_replica: int) -> list[dict[str, Any]]:
    """A row for each age of what is known of the replicas, and policy that asks."""
    requests = Traffic(IMAGES[MIXED], list(SIZES.values()), STEPS).requests(
        per_replica * replicas, load, v5e_4(), replicas
    )
    ways = ("power-of-two", "bucket-affine", "shortest-queue")
    return [
        {
            "replicas": replicas,
            "load": load,
            "delay": delay,
            "way": way,
            **asdict(outcome(requests, replicas, way, delay)),
        }
        for delay in DELAYS
        for way in ways
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """As a table in Markdown."""
    print(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def plot(rows: Sequence[dict[str, Any]], title: str) -> Image.Image:
    """Latency, mean and p99, and how full the places are, over the load."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.5), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3)
    colours: dict[str, str] = {}
    for way in WAYS:
        policy, _, apart = way.partition(",")
        colour = colours.setdefault(policy, f"C{len(colours)}")
        found = [row for row in rows if row["way"] == way]
        for axes, key, factor in zip(panels, ("mean", "p99", "full"), (1, 1, 100), strict=True):
            loads, values = [row["load"] for row in found], [factor * row[key] for row in found]
            label = way if key == "mean" else None
            axes.plot(loads, values, "--" if apart else "-", color=colour, label=label, marker="o", markersize=4)
    for axes, name in zip(panels, ("latency, s (mean)", "latency, s (p99)", "places with an image, %"), strict=True):
        axes.set_xlabel("load")
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:2]:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    panels[2].set_ylim(0, 100)
    figure.legend(
        loc="outside upper left", frameon=False, fontsize=8, ncols=3, handlelength=3.5, title=title, alignment="left"
    )
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image.open(stream)


@contextmanager
def server_on(core: int, options: Sequence[str]) -> Iterator[str]:
    """The address of a server whose threads all run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    with ExitStack() as stack:
        try:
            address = stack.enter_context(serving(options))
        finally:
            os.sched_setaffinity(0, before)
        yield address


class Local:
    """Two servers, and what is on the way to them."""

    def __init__(self, clients: Sequence[httpx.AsyncClient]):
        self.clients = clients
        self.counts = [[0] * len(LOCAL_SIZES) for _ in clients]

    async def ask(self, index: int, request: Request) -> None:
        width, height = LOCAL_SIZES[request.lane]
        body = {"prompt": f"{PROMPT}, number {request.number}", "n": request.images, "size": f"{width}x{height}"}
        self.counts[index][request.lane] += request.images
        answer = await self.clients[index].post(
            "/v1/images/generations", json={**body, "num_inference_steps": request.rows, "seed": request.number}
        )
        self.counts[index][request.lane] -= request.images
        answer.raise_for_status()

    async def metric(self, name: str) -> float:
        """The sum over the servers."""
        pages = [(await client.get("/metrics")).text for client in self.clients]
        return sum(
            float(line.split()[1]) for page in pages for line in page.splitlines() if line.startswith(name + " ")
        )

    async def other_seconds(self) -> float:
        """Of processor time since the start, of all processes but the servers and this one (on Linux)."""
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        own = time.process_time() + await self.metric("process_cpu_seconds_total")
        return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own

    async def machine(self, steps: int) -> Machine:
        """The step times while both servers draw; what a lone request takes besides its steps is its decoding's."""
        row_seconds, decode_seconds = [], []
        for lane in range(len(LOCAL_SIZES)):
            taken = []

            async def lone(index: int, lane: int = lane, taken: list[float] = taken) -> None:
                began = time.monotonic()
                await self.ask(index, Request(0, 0.0, lane, PLACES, steps))
                taken.append(time.monotonic() - began)

            busy, rows = await self.metric("jaxl:busy_seconds_total"), await self.metric("jaxl:steps_total")
            for _ in range(ROUNDS):
                await asyncio.gather(*(lone(index) for index in range(len(self.clients))))
            busy = await self.metric("jaxl:busy_seconds_total") - busy
            rows = await self.metric("jaxl:steps_total") - rows
            row_seconds.append(busy / rows * PLACES)
            decode_seconds.append((statistics.mean(taken) - steps * row_seconds[-1]) / PLACES)
        return Machine(row_seconds, decode_seconds, PLACES)

    async def latencies(self, requests: Sequence[Request], policy: Policy) -> np.ndarray:
        random, began = np.random.default_rng(0), time.monotonic()
        found = np.zeros(len(requests))

        async def send(index: int, request: Request) -> None:
            await self.ask(index, request)
            found[request.number] = time.monotonic() - began - request.at

        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(began + request.at - time.monotonic())
                index = policy(request, self.counts, PLACES, random)
                group.create_task(send(index, request))
                await asyncio.sleep(0)  # so that it is counted
        return found


def between(before: Machine, after: Machine) -> Machine:
    rows, decodes = (
        np.mean([getattr(machine, name) for machine in (before, after)], axis=0).tolist()
        for name in ("row_seconds", "decode_seconds")
    )
    return replace(before, row_seconds=rows, decode_seconds=decodes)


async def measure(
    urls: Sequence[str], policies: Sequence[str], load: float, count: int, steps: int
) -> list[dict[str, Any]]:
    """A row for each policy: latencies as measured, and as simulated with the step times before and after."""
    rows = []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=None)) for url in urls]
        local = Local(clients)
        await local.machine(steps)  # first requests take longer
        machine = await local.machine(steps)
        traffic = Traffic(IMAGES[MIXED], [1 / len(LOCAL_SIZES)] * len(LOCAL_SIZES), (steps,))
        requests = traffic.requests(count, load, machine, len(urls))
        for name in policies:
            began, others = time.monotonic(), await local.other_seconds()
            measured = await local.latencies(requests, POLICIES[name])
            others, seconds = await local.other_seconds() - others, time.monotonic() - began
            before, machine = machine, await local.machine(steps)
            taken = between(before, machine)
            simulated, _ = simulate(requests, taken, len(urls), POLICIES[name])
            row = {
                "policy": name,
                "mean": float(measured.mean()),
                "simulated": float(simulated.mean()),
                "simulated / measured": float(simulated.mean() / measured.mean()),
                "p95": float(np.quantile(measured, 0.95)),
                "p95 simulated": float(np.quantile(simulated, 0.95)),
                "steps": " and ".join(f"{1000 * each:.0f}" for each in taken.row_seconds),
                "decoding": " and ".join(f"{1000 * each:.0f}" for each in taken.decode_seconds),
                "other work": f"{others / seconds:.2f} cores",
            }
            rows.append(row)
            show([row])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--per-replica", type=int, default=100, help="requests, but at least 2000 in all")
    parser.add_argument("--plot", type=Path, help="of the largest number of replicas")
    parser.add_argument("--measure", action="store_true", help="two local servers of tiny")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="that are measured")
    parser.add_argument("--load", type=float, default=0.7, help="of what is measured, and with old counts simulated")
    parser.add_argument("--requests", type=int, default=100, help="that are measured with each policy")
    parser.add_argument("--steps", type=int, default=8, help="of each image that is measured")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    if args.measure:
        cores = sorted(os.sched_getaffinity(0))[:2]
        if len(cores) < 2:
            parser.error("--measure needs two cores")
        print(f"load average before: {os.getloadavg()[0]:.2f}; step and decoding in ms, of each size", flush=True)
        sizes = [text for width, height in LOCAL_SIZES for text in ("--size", f"{width}x{height}")]
        options = ["--slots", str(PLACES), "--chunks", "1", "--max-waiting", "10000", *sizes]
        with ExitStack() as stack:
            urls = [stack.enter_context(server_on(core, options)) for core in cores]
            results["measured"] = asyncio.run(measure(urls, args.policies, args.load, args.requests, args.steps))
        show(results["measured"])
    else:
        results["simulated"] = rows = compare(args.replicas, args.loads, args.per_replica)
        show(rows)
        most = max(args.replicas)
        results["delays"] = compare_delays(most, args.load, args.per_replica)
        show(results["delays"])
        if args.plot is not None:
            found = [row for row in rows if row["replicas"] == most and row["traffic"] == MIXED]
            write_png(args.plot, plot(found, f"{most} replicas of v5e-4, requests of {MIXED}"), None)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
