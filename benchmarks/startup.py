"""The time from a command to its first picture, with an empty and with a filled cache of programs.

    python benchmarks/startup.py [--model random:mid] [--size WxH] [--steps N] [--runs N]

Whole processes of `jaxl generate`, in turns, medians; `jaxl bench --startup` has the same beside what else it measures.
The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from jaxl.bench.random_model import ensure_random_model
from jaxl.bench.startup import measure_startup
from jaxl.bench.workload import Workload
from jaxl.call.sizes import check_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:mid", help="random:sdxl, random:mid or random:tiny")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    width, height = check_size("size", args.size)
    workload = Workload(1, width, height, 1, args.steps, "euler", 5.0)
    path = str(ensure_random_model(args.model.removeprefix("random:")))
    found = asdict(measure_startup(path, workload, "auto", args.runs, lambda: None))
    print(f"| {args.model}, {args.size}, {args.steps} steps | seconds |\n| --- | --- |")
    for name, spread in found.items():
        print(f"| {name.removesuffix('_s')} | {spread['median']:.2f} |")
    print(json.dumps({**vars(args), "startup": found}))


if __name__ == "__main__":
    main()
