"""What does a step of SDXL do on an H100? Compile it for one that is not there, and count kernels and bytes.

    pip install ".[cuda13]"
    python benchmarks/gpu_compile.py [--batch N] [--attention cudnn] [--group-norm triton] [--unmerged] [--tiny]
                                     [--precision fp8+conv] [--cached]

Nothing is tuned, because that takes a GPU: products are cuBLAS's, none Triton's. Bytes are those of each kernel's
operands and results, as if none was still in a cache. The second table has the operations of libraries' products and
convolutions by the types of what they multiply and give. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"

import jax.numpy as jnp
from jax.experimental import topologies

from jaxl.kernels import Kernels
from jaxl.presets import SDXL_BASE
from jaxl.run.bucket import Bucket
from jaxl.run.model import Model
from jaxl.run.programs import ADVANCE, Programs
from jaxl.run.sharding import make_mesh, place_parameters
from jaxl.weights.quantise import PRECISIONS, quantised_shapes
from jaxl.weights.source import open_checkpoint

# NVIDIA's H100 Tensor Core GPU Architecture (2022), SXM5
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
  runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0" dnn_version: "9.12.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
UNMERGED: dict[str, Any] = {"xla_gpu_dot_merger_threshold_mb": 0}

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
CALLS = {"attention": "fmha", "convolution": "conv", "product": "cublas", "triton": "triton"}
MOVES = {"copy", "slice", "transpose", "dynamic-slice", "dynamic-update-slice"}
PLUMBING = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "reshape"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--attention", default="cudnn", choices=["xla", "cudnn"])
    parser.add_argument("--group-norm", default="xla", choices=["xla", "triton"])
    parser.add_argument("--unmerged", action="store_true", help="keep XLA from merging products of the same input")
    parser.add_argument("--precision", choices=[*PRECISIONS])
    parser.add_argument("--cached", action="store_true", help="with the choice that cache_interval makes at each step")
    parser.add_argument("--tiny", action="store_true", help="the embedded model instead of SDXL")
    args = parser.parse_args()

    topology = topologies.get_topology_desc(platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1")
    mesh = make_mesh(topology.devices)
    model = Model.from_configs(open_checkpoint("tiny").configs if args.tiny else SDXL_BASE)
    model = replace(model, kernels=Kernels(attention=args.attention, group_norm=args.group_norm))
    shapes = model.shapes(jnp.bfloat16)
    if args.precision is not None:
        shapes["unet"] = quantised_shapes(shapes["unet"], PRECISIONS[args.precision])
    programs = Programs(model, mesh, place_parameters(shapes, mesh, split=False))
    bucket = Bucket(args.batch, model.default_size, model.default_size, guided=True, cached=args.cached)
    began = time.perf_counter()
    lowered = programs.trace(ADVANCE, bucket).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile(compiler_options=UNMERGED if args.unmerged else {})
    seconds = time.perf_counter() - began

    print("| a guided step | kernels | GB |\n| --- | --- | --- |")
    step, types = count(str(compiled.as_text()))
    for kind, (kernels, size) in sorted(step.items()):
        print(f"| {kind} | {kernels} | {size / 1e9:.2f} |")
    kernels, size = (sum(each) for each in zip(*step.values(), strict=True))
    print(f"| in all | {kernels} | {size / 1e9:.2f} |")
    print("\n| by types | kernels | TFLOP | GB |\n| --- | --- | --- | --- |")
    for kind, (number, operations, moved) in sorted(types.items()):
        print(f"| {kind} | {number} | {operations / 1e12:.3f} | {moved / 1e9:.2f} |")
    memory: Any = compiled.memory_analysis()
    print(
        json.dumps(
            {**vars(args), "kernels": kernels, "bytes": size, "compile_s": round(seconds)}
            | {"by_kind": step, "by_types": types}
            | {"temporaries": memory.temp_size_in_bytes, "aliased": memory.alias_size_in_bytes}
        )
    )


def count(program: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Kernels and bytes of one pass through the longest loop of an optimized program, by kind.

    And kernels, operations and bytes of products and convolutions, by their types.
    """
    computations: dict[str, list[tuple[str, ...]]] = {}
    for line in program.splitlines():
        if begins := COMPUTATION.match(line):
            computations[begins[1]] = []
        elif computations and (instruction := INSTRUCTION.match(line)):
            computations[next(reversed(computations))].append(instruction.groups())
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    types: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def called(how: str, rest: str) -> str:
        return re.findall(rf"\b{how}=%([\w.\-]+)", rest)[0]

    def walk(name: str, times: int) -> None:
        shapes = {of: shape for of, shape, *_ in computations[name]}
        for _, shape, operation, operands, rest in computations[name]:
            if operation == "while":
                walk(called("body", rest), times * int((re.findall(r'known_trip_count":\{"n":"(\d+)', rest) or [1])[0]))
            elif operation == "call":
                walk(called("to_apply", rest), times)
            elif operation == "conditional":  # what costs most
                branches = re.findall(r"%([\w.\-]+)", re.findall(r"computations?=(\{.*?\}|%\S+, false_\S+)", rest)[0])
                walk(max(branches, key=lambda branch: len(computations[branch])), times)
            elif operation == "fusion" or operation == "custom-call" or operation in MOVES | {"reduce", "concatenate"}:
                inner = computations[called("calls", rest)] if operation == "fusion" else []
                kind = _kind({each[2] for each in inner} or {operation}, rest)
                names = re.findall(r"%([\w.\-]+)", operands)
                sizes = {each: _read(inner, i, _bytes(shapes.get(each, ""))) for i, each in enumerate(names)}
                # a slice on its own reads no more than it writes
                moved = _bytes(shape) + (_bytes(shape) if kind == "copy" else sum(sizes.values()))
                _add(found[kind], times, times * moved)
                if kind in ("product", "convolution"):
                    types_of, operations = _multiplied(kind, shape, [shapes[each] for each in names[:2]], rest)
                    _add(types[f"{kind}, {types_of}"], times, times * operations, times * moved)

    loops = [called("body", each[4]) for lines in computations.values() for each in lines if each[2] == "while"]
    walk(max(loops, key=lambda body: len(computations[body])), 1)
    return dict(found), dict(types)


def _add(numbers: list[int], *more: int) -> None:
    numbers[:] = [number + each for number, each in zip(numbers, more, strict=True)]


def _multiplied(kind: str, result: str, operands: list[str], rest: str) -> tuple[str, int]:
    """The types of a library's product or convolution, and its operations: two for each multiplication."""
    (gives, given), (a, left), (b, right) = (_arrays(each)[0] for each in (result, *operands))
    if kind == "product":
        contracted = re.findall(r'"lhs_contracting_dimensions":\["(\d+)"\]', rest)
        deep = left[int(contracted[0])]
    else:
        labels = re.findall(r"dim_labels=\w+->(\w+)", rest)[0]
        deep = math.prod(right) // given[labels.index("f")]
    return f"{a} by {b} to {gives}", 2 * math.prod(given) * deep


def _read(fused: list[tuple[str, ...]], index: int, size: int) -> int:
    """Bytes that a fusion reads of the operand of this number and size: of one that is only sliced, the slices."""
    name = next((each[0] for each in fused if each[2] == "parameter" and each[3] == str(index)), None)
    uses = [each for each in fused if name in re.findall(r"%([\w.\-]+)", each[3])]
    sliced = bool(uses) and all(each[2] == "slice" for each in uses)
    return sum(_bytes(each[1]) for each in uses) if sliced else size


def _kind(operations: set[str], rest: str) -> str:
    """What a kernel is, by the operations fused in it or by the library's function."""
    if operations == {"custom-call"}:
        target = re.findall(r'custom_call_target="([^"]+)"', rest)[0]
        return next((kind for kind, word in CALLS.items() if word in target), target)
    if "reduce" in operations:
        return "reduction"
    if operations <= MOVES | PLUMBING:
        return "copy"
    return "concatenation" if "concatenate" in operations else "element-wise"


def _bytes(shape: str) -> int:
    """Of an array or a tuple, less the workspace that comes last in a library's tuple."""
    arrays = [each for each in _arrays(shape) if not (shape.startswith("(") and each[0] in ("s8", "u8"))]
    return sum(BYTES[dtype] * math.prod(sizes) for dtype, sizes in arrays)


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    """The type and the sizes of each array in a shape as XLA writes it."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(dtype, [int(n) for n in sizes.split(",") if n]) for dtype, sizes in found]


if __name__ == "__main__":
    main()
