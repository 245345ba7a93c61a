"""Whose turn it is, compared by simulation: one replica whose batches share its devices, under random requests.

    python benchmarks/routing/turns.py [--loads 0.4 0.6 0.8] [--requests 4000]

`urgency` is the engine's order (`jaxl.engine.turns`). With `in turn` that batch goes on which has not run for longest,
with `oldest first` the one with the image that was asked for first. Each request has one image. A slowdown is how long
it took, over how long it takes alone in a whole batch, and a load is the part of the time that all would take if every
place was full. The output is a table in Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from simulation import WARM_UP, Lane, Machine, Replica, Traffic, at_random, simulate

# row times are of `tiny` on two cores, as near as it matters: only ratios do
THREE_MODELS = Machine((0.35,) * 3, (0.3,) * 3, decodes_apart=True)
# a CPU works on images in turn, and on those alone that are there; these shares lie between those that
# `benchmarks/occupancy.py` has at 256x256 and at 512x512
ON_CPU = replace(THREE_MODELS, smaller={1: 0.28, 2: 0.52, 3: 0.76})
MACHINES = {
    "three models": (THREE_MODELS, (1 / 3,) * 3, (4, 8)),
    "three models, on a CPU": (ON_CPU, (1 / 3,) * 3, (4, 8)),
    "three models, long and short": (THREE_MODELS, (1 / 3,) * 3, (4, 8, 30)),
    "two sizes": (Machine((0.35, 3.5), (0.3, 3.0), decodes_apart=True), (0.9, 0.1), (4, 8, 20)),
}


class InTurn(Replica):
    def urgency(self, lane: Lane, now: float) -> float:
        """More for each call of other lanes since its last."""
        calls = len(self.calls)
        return next((since for since in range(calls) if self.calls[-1 - since].lane == lane.key), calls)


class OldestFirst(Replica):
    def urgency(self, lane: Lane, now: float) -> float:
        return now - min(request.at for *_, request in [*lane.running, *lane.waiting])


ORDERS = {"in turn": InTurn, "oldest first": OldestFirst, "urgency": Replica}


def slowdowns(name: str, order: type[Replica], load: float, count: int) -> np.ndarray:
    """Of the requests once the replica is as full as it is going to be."""
    machine, lanes, rows = MACHINES[name]
    requests = Traffic({1: 1.0}, lanes, rows).requests(count, load, machine, 1)
    latencies, _ = simulate(requests, machine, 1, at_random, kind=order)
    alone = [each.rows * machine.row_seconds[each.lane] + machine.decode_seconds[each.lane] for each in requests]
    return (latencies / alone)[round(WARM_UP * count) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--requests", type=int, default=4000)
    args = parser.parse_args()
    heads = [f"load {load:g}: mean (p99)" for load in args.loads]
    print(f"| | order | {' | '.join(heads)} |\n|{' --- |' * (2 + len(heads))}")
    for name in MACHINES:
        for way, order in ORDERS.items():
            found = [slowdowns(name, order, load, args.requests) for load in args.loads]
            cells = [f"{each.mean():.1f} ({np.quantile(each, 0.99):.1f})" for each in found]
            print(f"| {name} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
