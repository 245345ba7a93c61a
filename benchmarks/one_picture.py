"""One picture on more and more devices of a CPU: what a device computes and holds, and the time.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/one_picture.py [--model NAME] [--devices 1,2,4]

Devices of a CPU share its cores, so what falls is the work of a device, not the time. Work is counted by the compiler
with its own products and convolutions, as it cannot see into a library's; the last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import numpy as np

import jaxl
from jaxl.bench.random_model import source_of
from jaxl.call.options import LoadOptions
from jaxl.kernels import Kernels
from jaxl.loading import open_pipeline
from jaxl.run.compiler import YNN
from jaxl.run.programs import ADVANCE, DECODE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    source = source_of(args.model)
    counts = [int(count) for count in args.devices.split(",")]
    rows: list[dict[str, Any]] = []
    first: Any = None
    print("| devices | branches x rows | a step, GFLOP | MiB | decode, GFLOP | MiB | s | far |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in counts:
        mesh = jaxl.make_mesh(jax.devices()[:count])
        pipe = open_pipeline(source, LoadOptions(dtype="float32", mesh=mesh, kernels=Kernels.plain("cpu")))
        bucket, to = pipe.bucket(1), pipe.programs.target
        facts: dict[str, Any] = {"devices": count, "shares": list(ADVANCE.mesh(to, bucket).devices.shape)}
        for program in (ADVANCE, DECODE):
            made = pipe.programs.trace(program, bucket).lower().compile(compiler_options={YNN: ""})
            cost, memory = made.cost_analysis(), made.memory_analysis()
            assert cost is not None
            assert memory is not None
            facts[program.name] = {
                "gflop": cost["flops"] / 1e9,
                "temporaries_mib": memory.temp_size_in_bytes / 2**20,
            }
        params = pipe.load_params()
        asked = {"seed": 1, "steps": args.steps, "guidance_scale": 5.0, "output": "numpy"}
        pipe.generate(params, "a llama", **asked)
        result = pipe.generate(params, "a llama", **asked)
        first = result if first is None else first
        facts["seconds"] = result.timings["denoise"]
        facts["far"] = float(np.abs(np.asarray(result.images) - np.asarray(first.images)).max())
        rows.append(facts)
        parts = facts["advance"], facts["decode"]
        shares = " x ".join(map(str, (facts["shares"] + [1])[:2]))
        numbers = " | ".join(f"{part['gflop']:.2f} | {part['temporaries_mib']:.1f}" for part in parts)
        print(f"| {count} | {shares} | {numbers} | {facts['seconds']:.2f} | {facts['far']:.1e} |", flush=True)
    print(json.dumps({"jax": jax.__version__, **vars(args), "rows": rows}), flush=True)


if __name__ == "__main__":
    main()
