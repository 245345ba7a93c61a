"""What a row of a running batch takes, by how many of its places have images: evaluations in turn, and all together.

    python benchmarks/occupancy.py [--model tiny] [--size 256] [--slots 4] [--runs 7]

The models are those of `jaxl bench --model`. Both forms take turns, so that what else the machine does is the same for
both; medians. The output is a table in Markdown.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxl.backend import PipelineBackend, open_backend
from jaxl.bench.random_model import source_of
from jaxl.kernels import Kernels
from jaxl.run.sharding import use_cores

STEPS = 100  # more than are run, so that no image ends


def batch_with(backend: PipelineBackend, slots: int, images: int) -> Any:
    """Return a batch in which so many places are taken."""
    size = backend.lanes[0].width
    asked = {"prompt": "a red apple", "steps": STEPS, "width": size, "height": size, "num_images": images}
    drawings = backend.read(asked)
    lane: Any = drawings[0].stages[0].lane
    batch = backend.batch(lane, slots)
    for place, drawing in enumerate(drawings):
        batch.join(place, drawing, 0, None)
    return batch


def seconds(batch: Any) -> float:
    began = time.perf_counter()
    batch.advance(1)
    np.asarray(batch.mark())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    use_cores(spare=1)  # before JAX is asked for them
    best = Kernels.of_device(jax.devices()[0])
    forms = {way: replace(best, evaluations=way) for way in ("together", "in_turn")}
    counts = range(1, args.slots + 1)
    times: dict[tuple[str, int], list[float]] = {(way, count): [] for way in forms for count in counts}
    batches = {}
    for way, kernels in forms.items():
        sizes = [(args.size, args.size)]
        backend = open_backend(source_of(args.model), sizes=sizes, slots=args.slots, chunks=1, kernels=kernels)
        batches |= {(way, count): batch_with(backend, args.slots, count) for count in counts}
    for batch in batches.values():
        seconds(batch)
    for _ in range(args.runs):
        for each, batch in batches.items():
            times[each].append(seconds(batch))
    whole = statistics.median(times["together", args.slots])
    print(f"| images of {args.slots} | together, ms | in turn, ms | of a whole batch together |\n|{' --- |' * 4}")
    for count in counts:
        together, in_turn = (statistics.median(times[way, count]) for way in forms)
        print(f"| {count} | {together * 1e3:.0f} | {in_turn * 1e3:.0f} | {in_turn / whole:.2f} |")


if __name__ == "__main__":
    main()
