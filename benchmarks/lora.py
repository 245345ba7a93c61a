"""What LoRAs beside the weights cost: a guided step with and without them, and the way of a file to its first row.

    python benchmarks/lora.py [--model random:mid] [--size WxH] [--batch N] [--ranks 16,64] [--rows N] [--runs N]
    python benchmarks/lora.py --file-only --model random:sdxl --ranks 64

The first command draws with files of random numbers for the 722 linear layers of SDXL's transformers, or as many as the
model has, at each rank, all variants in turns, and prints medians of single rows; also at the largest rank with other
layers (convolutions) and with DoRA's scales. The second one reads a file of a full-size model, and makes its arrays in
bfloat16, without any weights. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import jaxl
from jaxl.bench.random_model import MODELS, ensure_random_model
from jaxl.pipeline import Pipeline
from jaxl.run.adapted import AdaptedNetworks
from jaxl.run.adapters import Room, adapter_arrays, adapter_shapes, at_each_row, at_each_text, layers, rounded
from jaxl.run.model import Model
from jaxl.run.programs import ADVANCE, START, Programs
from jaxl.run.sharding import make_mesh, place_parameters
from jaxl.weights.adapters.adapter import read_adapter
from jaxl.weights.adapters.strength import Strength

PROMPT = "a red apple on a blue background, flat style"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:mid", help="random:sdxl, random:mid or random:tiny")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--file-only", action="store_true")
    args = parser.parse_args()
    name, ranks = args.model.removeprefix("random:"), [int(rank) for rank in args.ranks.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        report = way_of_a_file(name, ranks[-1], Path(folder)) if args.file_only else steps(name, args, Path(folder))
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, **vars(args), **report}))


def steps(name: str, args: Any, folder: Path) -> dict[str, Any]:
    """Return the medians of one row of each variant, and the ratios of turns to the one without LoRAs."""
    pipe, params = jaxl.from_pretrained(ensure_random_model(name), dtype="auto")
    width, height = map(int, args.size.split("x"))
    variants: dict[str, dict[str, float]] = {"none": {}}
    ranks = [int(rank) for rank in args.ranks.split(",")]
    for rank in ranks:
        variants |= {f"rank {rank}": {f"r{rank}": 1.0}}
        pipe.add_lora(f"r{rank}", write(folder / f"r{rank}.safetensors", pipe.model, rank))
    for kind in ("other", "dora"):
        variants[f"rank {ranks[-1]}, {kind}"] = {kind: 1.0}
        pipe.add_lora(kind, write(folder / f"{kind}.safetensors", pipe.model, ranks[-1], kind))
    runs = {
        variant: prepared(pipe, params, args.rows, loras=loras, width=width, height=height, num_images=args.batch)
        for variant, loras in variants.items()
    }
    rows = in_turns(runs, args)
    print_rows(rows, args, pipe)
    return {"rows": rows}


def in_turns(runs: Mapping[str, Iterator[float]], args: Any) -> dict[str, dict[str, float]]:
    """Return the medians of a row of each variant, and of the ratios of its turns to those of the variant "none"."""
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    for turn in range(args.runs + 1):  # the first warms up
        for variant, run in runs.items():
            took = next(run)
            if turn:
                seconds[variant].append(took / args.rows)
    return {
        variant: {
            "row_ms": 1e3 * statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, seconds["none"], strict=True)),
        }
        for variant, own in seconds.items()
    }


def print_rows(rows: Mapping[str, Mapping[str, float]], args: Any, pipe: Pipeline) -> None:
    print(f"| {args.model}, {args.size}, {args.batch} images, {pipe.dtype} | row, ms | beside none |")
    print("| --- | --- | --- |")
    for variant, row in rows.items():
        print(f"| {variant} | {row['row_ms']:.1f} | {row['ratio']:.3f} |")


def prepared(pipe: Pipeline, params: Any, rows: int, **options: Any) -> Iterator[float]:
    """Yield the seconds that some rows take, again and again."""
    plan = pipe.plan(PROMPT, steps=rows, scheduler="euler", guidance_scale=5.0, **options)
    inputs = pipe.inputs(params, plan)
    (cond,), (segment,) = inputs.conditionings(), plan.segments
    cond = jax.block_until_ready(jax.tree.map(jnp.asarray, cond))
    start, run = pipe.programs.get(START, plan.bucket), pipe.programs.get(ADVANCE, plan.bucket)
    network, beginning = inputs.network(segment), inputs.beginning()
    controls, given = tuple(each.params for each in plan.networks), pipe.programs.none_given(plan.bucket)
    while True:
        slots = replace(start(beginning), features=pipe.programs.no_features(plan.bucket))
        jax.block_until_ready(slots)
        began = time.perf_counter()
        jax.block_until_ready(run(network, slots, cond, np.int32(rows), controls, given))
        yield time.perf_counter() - began


def way_of_a_file(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """Return the seconds from a file that the disk's cache has to the arrays of an image, in parts; medians of five."""
    model = Model.from_configs(MODELS[name]()[0])
    mesh = make_mesh(jax.devices()[:1])
    target = Programs(model, mesh, place_parameters(model.shapes(), mesh, split=False)).target
    params = {"unet": {"conv_in": {"bias": jnp.zeros(())}}}
    file = write(folder / "file.safetensors", model, rank)
    found: dict[str, list[float]] = {"read": [], "work_out": [], "place": []}
    for _ in range(5):
        began = time.perf_counter()
        adapter = read_adapter("file", file, model.shapes())
        read = time.perf_counter()
        forms = AdaptedNetworks(target, params).forms(params, ((adapter, Strength(0.8)),), "unet")
        worked_out = time.perf_counter()
        for among in (at_each_row, at_each_text):
            shapes = adapter_shapes(target, "unet", Room(rounded(rank)), among)
            jax.block_until_ready(adapter_arrays(shapes, [forms]))
        for part, seconds in zip(
            found, (read - began, worked_out - read, time.perf_counter() - worked_out), strict=True
        ):
            found[part].append(seconds)
    medians = {part: statistics.median(seconds) for part, seconds in found.items()}
    print(f"{file.stat().st_size / 1e6:.0f} MB:", ", ".join(f"{part} {s:.2f} s" for part, s in medians.items()))
    print(f"together {sum(medians.values()):.2f} s")
    return {"bytes": file.stat().st_size, "seconds": medians}


def write(file: Path, model: Model, rank: int, kind: str = "") -> Path:
    """Write a file of random numbers for the transformers' layers, as diffusers names them; `kind` adds to it."""
    rng = np.random.default_rng(rank)
    tensors = {}
    for path, (*window, inputs, outputs) in layers(model, "unet").items():
        if ".attentions." not in path and kind != "other":
            continue
        tensors[f"unet.{path}.lora_A.weight"] = rng.standard_normal((rank, inputs, *window), np.float32)
        tensors[f"unet.{path}.lora_B.weight"] = rng.standard_normal((outputs, rank, *(1 for _ in window)), np.float32)
        if kind == "dora":
            tensors[f"unet.{path}.lora_magnitude_vector"] = np.ones(outputs, np.float32)
    save_file({key: (0.01 * array).astype(np.float16) for key, array in tensors.items()}, file)
    return file


if __name__ == "__main__":
    main()
