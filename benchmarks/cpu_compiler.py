"""XLA's ways to compile for this processor, in turns: a guided step and a decoded picture of one image, float32.

    python benchmarks/cpu_compiler.py [--model tiny|random:mid] [--steps N] [--runs N]

The first row is XLA's own choice. `ratio` is its time over the row's, in the same turn, the median; the last line of
the output is JSON. `jaxl.run.compiler` has the choice that jaxl makes by these figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import jax
import numpy as np

from jaxl.bench.random_model import source_of
from jaxl.call.options import LoadOptions
from jaxl.kernels.processor import facts
from jaxl.loading import open_pipeline
from jaxl.run import programs
from jaxl.run.compiler import OTHER_PRODUCTS, YNN

WAYS = {
    "XLA's choice": {},
    "products not by YNN": OTHER_PRODUCTS,
    "nothing by YNN": {YNN: ""},
    "only sums by YNN": {YNN: "LIBRARY_FUSION_TYPE_REDUCE"},
    "wider vectors": {"xla_cpu_prefer_vector_width": "512"},
}


def compiled_with(options: dict[str, str | bool], traced: jax.stages.Traced, *_: str, **__: bool) -> Any:
    return traced.lower().compile(compiler_options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:mid")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    source = source_of(args.model)
    jax.config.update("jax_enable_compilation_cache", False)

    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    pictures, draws = [], {}
    params = open_pipeline(source, LoadOptions(dtype="float32")).load_params()
    for way, options in WAYS.items():
        own = patch.object(programs, "_shared", WeakValueDictionary())  # or all ways would share the first one's
        with own, patch.object(programs, "compiled", partial(compiled_with, options)):
            pipe = open_pipeline(source, LoadOptions(dtype="float32"))
            draws[way] = partial(pipe.generate, params, "a llama", seed=1, steps=args.steps, guidance_scale=5.0)
            pictures.append(np.asarray(draws[way]().images[0], float))
        print(f"{way}: {np.abs(pictures[-1] - pictures[0]).max():g} grey levels from the first", flush=True)
    for _ in range(args.runs):
        for way, draw in draws.items():
            seconds[way].append(draw().timings)

    print("| | a step, ms | ratio | decode, ms | ratio |\n| --- | --- | --- | --- | --- |")
    rows = {}
    for way, timings in seconds.items():
        rows[way] = {}
        for part in ("denoise", "decode"):
            times = [each[part] for each in timings]
            own = [base[part] / each for base, each in zip(seconds["XLA's choice"], times, strict=True)]
            steps = args.steps if part == "denoise" else 1
            rows[way][part] = 1e3 * statistics.median(times) / steps, statistics.median(own)
        print(f"| {way} | " + " | ".join(f"{ms:.1f} | {ratio:.2f}" for ms, ratio in rows[way].values()) + " |")
    told = {"processor": facts().get("model name"), "jax": jax.__version__, **vars(args)}
    print(json.dumps({**told, "ways": rows}), flush=True)


if __name__ == "__main__":
    main()
