"""How much memory and time does it take to load full-size SDXL?

    python benchmarks/load_memory.py --tmp DIR [--stored bfloat16] [--dtype bfloat16]

Writes a checkpoint with SDXL's shapes and random weights into DIR (7 GB in 16 bits), loads it with
`jaxl.from_pretrained` on the CPU, each time in a process of its own, and deletes it. The first load finds nothing of
the files in memory, the second all that fits. The peak is of all resident memory: parameters, the pages of the files
that are mapped just then, and what is on its way between the two. Linux only. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

import jaxl
from jaxl.presets import SDXL_BASE
from jaxl.run.model import Model
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.folder import CLASSES, TOKENIZERS, weight_file
from jaxl.weights.layout import flatten, to_torch
from jaxl.weights.store import write_safetensors

DTYPES = {"bfloat16": jnp.bfloat16, "float16": np.float16, "float32": np.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tmp", type=Path, default=Path(tempfile.gettempdir()), help="where there is room for it")
    parser.add_argument("--stored", choices=DTYPES, default="bfloat16", help="dtype in the files")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="dtype in memory")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # the folder, in the process that loads it
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load, args.dtype)))
        return

    report = {}
    with tempfile.TemporaryDirectory(dir=args.tmp) as name:
        folder = Path(name)
        stored = write_checkpoint(folder, np.dtype(DTYPES[args.stored]))
        print(f"{'stored':10} {stored / 1e9:.2f} GB as {args.stored}", flush=True)
        forget(folder)
        for kind in ("cold", "warm"):
            command = [sys.executable, __file__, "--load", name, "--dtype", args.dtype]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            report[kind] = json.loads(done.stdout.splitlines()[-1])
            report[kind]["gb_per_s"] = round(stored / 1e9 / report[kind]["seconds"], 2)
            print(f"{kind:10}", report[kind], flush=True)
    print(json.dumps({"stored": args.stored, "dtype": args.dtype, "stored_gb": round(stored / 1e9, 2), **report}))


def write_checkpoint(folder: Path, dtype: np.dtype) -> int:
    """A folder in diffusers' layout, written tensor by tensor; the number of bytes of its tensors."""
    index = SDXL_BASE["model_index"] | {component: ["", kind] for component, kind in CLASSES.items()}
    index |= {tokenizer: ["transformers", "CLIPTokenizer"] for tokenizer in TOKENIZERS.values()}
    for name, config in (SDXL_BASE | {"model_index": index}).items():
        special = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
        path = folder / special.get(name, f"{name}/config.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
    for tokenizer in TOKENIZERS.values():
        Tokenizer.clip().save(folder / tokenizer)

    some = np.random.default_rng(0).standard_normal(1_000_003).astype(dtype)
    total = 0
    for component, tree in Model.from_configs(SDXL_BASE).shapes().items():
        entries = {
            key: (dtype, tuple(leaf.shape[axis] for axis in to_torch(key, leaf.shape)))
            for key, leaf in flatten(tree).items()
        }
        file = folder / component / weight_file(component, None)
        write_safetensors(file, entries, lambda key, entries=entries: np.resize(some, entries[key][1]))
        total += sum(math.prod(shape) for _, shape in entries.values()) * dtype.itemsize
    return total


def forget(folder: Path) -> None:
    """Have the system write the files out and drop them from its cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: Path, dtype: str) -> dict[str, float]:
    """Load the checkpoint in this process: gigabytes and seconds."""
    jax.devices()
    before = memory("VmRSS")
    began, work = time.perf_counter(), time.process_time()
    _, params = jaxl.from_pretrained(folder, dtype=DTYPES[dtype])
    seconds, work = time.perf_counter() - began, time.process_time() - work
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    peak = memory("VmHWM")
    return {
        "weights_gb": round(weights, 3),
        "before_gb": round(before, 3),
        "after_gb": round(memory("VmRSS"), 3),
        "peak_gb": round(peak, 3),
        "peak_by_weights": round(peak / weights, 3),
        "growth_by_weights": round((peak - before) / weights, 3),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(work, 2),
    }


def memory(field: str) -> float:
    """Gigabytes of this process, by a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e9


if __name__ == "__main__":
    main()
