"""Each kernel beside XLA's form of the same operation, at the shapes of SDXL, on the device that is here.

    python benchmarks/gpu_kernels.py [--repeats N] [--runs N]

Two branches of one 1024x1024 image in bfloat16: attention, group norm with SiLU, and products and convolutions in eight
bits. On a CPU the shapes are small, so that the command can be tried. An operation runs `repeats` times in one program,
each on what the one before left, so the time is that of the device alone; forms in turns, medians. `distance` is root
mean square over that of the first form. Each operation has a line of the table when it is measured; the last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxl.kernels import Kernels
from jaxl.kernels.attention import attention
from jaxl.kernels.group_norm import group_norm
from jaxl.nn.layer_kinds import INPUT_SCALE, SCALE, Params
from jaxl.nn.layers import conv, linear
from jaxl.nn.quantised import quantise_weight, scale_of

# side and channels of SDXL's pictures, and side, channels and heads of its transformers
PICTURES = {"gpu": ((128, 320), (64, 640), (32, 1280)), "cpu": ((8, 32), (4, 64))}
TRANSFORMERS = {"gpu": ((64, 640, 10), (32, 1280, 20)), "cpu": ((4, 64, 1),)}
ATTENTION = {"gpu": {"cudnn": Kernels(attention="cudnn")}, "cpu": {"small scores": Kernels.of("cpu")}}
NORM = {"gpu": {"triton": Kernels(group_norm="triton")}, "cpu": {}}
XLA = {"xla": Kernels()}
TEXT = 77
LARGEST = 6.0  # of inputs with the normal distribution


@dataclass(frozen=True)
class Form:
    """A way to compute an operation: `call(operands, x)`, so that what stays the same is no constant of the program."""

    call: Callable[[Any, Array], Array]
    operands: Any


@dataclass(frozen=True)
class Operation:
    """An operation on an array of this shape, in several forms, the first of which is XLA's."""

    name: str
    shape: tuple[int, ...]
    forms: Mapping[str, Form]


def operations(platform: str) -> Iterator[Operation]:
    for side, channels, heads in TRANSFORMERS[platform]:
        tokens = side * side
        for keys in (tokens, TEXT):
            operands = normal(2, keys, channels), normal(2, keys, channels)
            forms = {
                name: Form(partial(_attention, heads=heads, kernels=kernels), operands)
                for name, kernels in (XLA | ATTENTION[platform]).items()
            }
            yield Operation(f"attention, {tokens} x {keys}, {heads} heads", (2, tokens, channels), forms)
        for outputs in (channels, 8 * channels):
            layers = in_eight_bits(normal(channels, outputs, scale=channels**-0.5))
            forms = {name: Form(linear, layer) for name, layer in layers.items()}
            yield Operation(f"product, {2 * tokens} x {channels} x {outputs}", (2 * tokens, channels), forms)
    for side, channels in PICTURES[platform]:
        shape = (2, side, side, channels)
        norm = {"weight": normal(channels), "bias": normal(channels)}
        forms = {
            name: Form(partial(group_norm, groups=32, eps=1e-5, silu=True, kernels=kernels), norm)
            for name, kernels in (XLA | NORM[platform]).items()
        }
        yield Operation(f"group norm, {side}x{side}, {channels}", shape, forms)
        layers = in_eight_bits(normal(3, 3, channels, channels, scale=(9 * channels) ** -0.5))
        if platform == "gpu":
            del layers["int8"]  # XLA computes it in float32 there, see `read_precision`
        yield Operation(
            f"convolution, {side}x{side}, {channels}", shape, {name: Form(conv, each) for name, each in layers.items()}
        )


def _attention(operands: tuple[Array, Array], x: Array, heads: int, kernels: Kernels) -> Array:
    return attention(x, *operands, heads, kernels=kernels)


def in_eight_bits(weight: Array) -> dict[str, Params]:
    """Return the parameters of a layer without bias as XLA has it, and in both kinds of eight-bit numbers."""
    layers: dict[str, Params] = {"xla": {"weight": weight}}
    for name, dtype in (("fp8", jnp.float8_e4m3fn), ("int8", jnp.int8)):
        rounded, scale = quantise_weight(weight, dtype)
        layers[name] = {"weight": rounded, SCALE: scale, INPUT_SCALE: scale_of(jnp.float32(LARGEST), dtype)}
    return layers


def normal(*shape: int, scale: float = 1.0) -> Array:
    return scale * jax.random.normal(jax.random.key(sum(shape)), shape, jnp.bfloat16)


def repeated(call: Callable[[Any, Array], Array], repeats: int) -> Callable[[Any, Array], Array]:
    """Return a program of so many calls: an element of each result goes into the next input, so none is left out."""

    @jax.jit
    def program(operands: Any, x: Array) -> Array:
        def body(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
            x, last = state
            x = x.at[(0,) * x.ndim].set(last[(0,) * last.ndim])
            return x, call(operands, x)

        return lax.fori_loop(1, repeats, body, (x, call(operands, x)))[1]

    return program


def measure(operation: Operation, repeats: int, runs: int) -> dict[str, dict[str, float]]:
    x = normal(*operation.shape)
    programs = {name: repeated(form.call, repeats) for name, form in operation.forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    results = {name: np.asarray(jax.jit(f.call)(f.operands, x), np.float32) for name, f in operation.forms.items()}
    for turn in range(runs + 1):  # the first compiles
        for name, program in programs.items():
            began = time.perf_counter()
            program(operation.forms[name].operands, x).block_until_ready()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    first = results["xla"]
    return {
        name: {
            "us": 1e6 * statistics.median(seconds[name]) / repeats,
            "distance": float(np.sqrt(np.square(result - first).mean() / np.square(first).mean())),
        }
        for name, result in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"| {device.device_kind} | form | us | beside XLA's | distance |\n| --- | --- | --- | --- | --- |")
    found = {}
    for operation in operations(device.platform):
        try:
            found[operation.name] = rows = measure(operation, args.repeats, args.runs)
        except Exception as error:  # a kernel that this device has not must not cost the others
            found[operation.name] = {"error": " ".join(str(error).split())[:300]}
            print(f"| {operation.name} | failed | | | {type(error).__name__} |", flush=True)
            continue
        for form, row in rows.items():
            ratio = row["us"] / rows["xla"]["us"]
            print(f"| {operation.name} | {form} | {row['us']:.1f} | {ratio:.2f} | {row['distance']:.2g} |", flush=True)
    print(json.dumps({"device": device.device_kind, "jax": jax.__version__, **vars(args), "operations": found}))


if __name__ == "__main__":
    main()
