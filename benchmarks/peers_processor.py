"""How much processor time does a guided step take, here and in other programs, on a machine that is busy?

    taskset -c 0 python benchmarks/peers_processor.py [--model tiny] [--steps 2,8] [--rounds 3] [--peer NAME[:DTYPE]]

One image in float32, in turns. A step is the difference between calls of more and of fewer steps, so loading and
decoding are in none. On one core alone, or threads that wait for each other would count. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax

from jaxl.bench.peers import Opening, Peer, read_peer
from jaxl.bench.random_model import source_of
from jaxl.bench.workload import PROMPT, Workload
from jaxl.call.options import LoadOptions
from jaxl.loading import open_pipeline
from jaxl.run.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", default="2,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[])
    args = parser.parse_args()
    few, many = map(int, args.steps.split(","))

    mesh = make_mesh(jax.devices()[:1])
    pipe = open_pipeline(source_of(args.model), LoadOptions(dtype="float32", mesh=mesh))
    params = pipe.load_params()
    folder, side = str(pipe.checkpoint.files()[0].parents[1]), pipe.model.default_size

    def own(steps: int) -> float:
        began = time.process_time()
        pipe.generate(params, PROMPT, steps=steps, scheduler="euler", guidance_scale=5.0)
        return time.process_time() - began

    def of(peer: Peer, steps: int) -> float:
        began = processor_time(peer.pid)
        peer.run(Workload(1, side, side, 1, steps, "euler", 5.0))
        return processor_time(peer.pid) - began

    with ExitStack() as stack:
        runners: dict[str, Callable[[int], float]] = {"jaxl": own}
        for text in args.peer:
            name, dtype = read_peer(text)
            opening = Opening(text, name, folder, dtype or "float32", dtype or "float32", "cpu")
            peer = stack.enter_context(Peer(opening))
            runners[text] = lambda steps, peer=peer: of(peer, steps)
        for run in runners.values():
            run(few)
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(args.rounds):
            for name, run in runners.items():
                less, more = run(few), run(many)
                taken[name].append(1000 * (more - less) / (many - few))
    medians = {name: statistics.median(each) for name, each in taken.items()}
    print("| | ms | of jaxl's |\n| --- | --- | --- |")
    for name, value in medians.items():
        print(f"| {name} | {value:.0f} | {value / medians['jaxl']:.2f} |")
    print(json.dumps({**vars(args), "ms": taken}))


def processor_time(process: int) -> float:
    """Seconds of a process and of those that it started and that ended, as Linux tells them."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
