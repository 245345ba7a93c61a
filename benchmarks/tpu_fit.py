"""Does full-size SDXL fit a TPU? Compile its programs for chips that are not there and read the compiler's own account.

    pip install jaxl[tpu]
    python benchmarks/tpu_fit.py --topology v5e:2x2 --size 1024 --batch 4 [--split]

The compiler runs on an ordinary machine and takes minutes for `advance`. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", JAX_PLATFORMS="cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxl.model import Model
from jaxl.presets import SDXL_BASE
from jaxl.programs import Bucket, Programs
from jaxl.sharding import make_mesh, place_parameters

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--size", type=int, default=1024, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images, over all chips")
    parser.add_argument("--split", action="store_true", help="split the parameters over the chips")
    parser.add_argument("--programs", nargs="+", default=["encode_text", "start", "decode", "advance"], help="which")
    args = parser.parse_args()

    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = make_mesh(devices)
    model = Model.from_configs(SDXL_BASE)
    shapes = place_parameters(model.shapes(jnp.bfloat16), mesh, split=args.split)
    programs = Programs(model, mesh, shapes)
    bucket = Bucket(args.batch, args.size, args.size, guided=True)
    # parameters of the networks that a program does not take stay in memory beside it
    resident = {name: sum(map(bytes_per_chip, jax.tree.leaves(tree))) for name, tree in shapes.items()}
    uses = {"encode_text": tuple(model.text_encoders), "gather": (), "start": (), "advance": ("unet",)}
    uses |= {"encode_image": ("vae",), "decode": ("vae",)}

    report = {}
    for kind in args.programs:
        began = time.perf_counter()
        compiled = programs.trace(kind, None if kind == "encode_text" else bucket).lower().compile()
        memory: Any = compiled.memory_analysis()
        others = sum(size for name, size in resident.items() if name not in uses[kind])
        own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        report[kind] = {
            "arguments_and_results_gib": round(own / GIB, 2),
            "temporaries_gib": round(memory.temp_size_in_bytes / GIB, 2),
            "other_parameters_gib": round(others / GIB, 2),
            "total_gib": round((own + memory.temp_size_in_bytes + others) / GIB, 2),
            "compile_s": round(time.perf_counter() - began),
        }
        print(f"{kind:12}", report[kind], flush=True)
    print(json.dumps({"topology": args.topology, "chips": len(devices), **vars(args), "report": report}))


def bytes_per_chip(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    shard = leaf.sharding.shard_shape(leaf.shape)
    return jnp.dtype(leaf.dtype).itemsize * int(jnp.prod(jnp.array(shard)))


if __name__ == "__main__":
    main()
