"""XLA's compiler with options that were measured to be faster than its own choice (docs/performance.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxl.kernels.processor import facts

# On a CPU XLA hands operations to a library, YNN, where it has them. On Intel's processors, and on those without
# AVX-512, XLA's other way is faster for products of float32 in the U-Net, not in the autoencoder
# (benchmarks/cpu_compiler.py).
YNN = "xla_cpu_experimental_ynn_fusion_type"
OTHER_PRODUCTS: dict[str, str | bool] = {YNN: "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}


def compiled(traced: jax.stages.Traced, platform: str, *, products: bool) -> jax.stages.Compiled:
    """Compile a traced program, in which `products` take most of the time or not, with the options for it."""
    lowered = traced.lower()
    options = compiler_options(platform, facts(), traced.in_avals) if products else {}
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        return lowered.compile()  # a jaxlib that does not know them


def compiler_options(platform: str, processor: Mapping[str, str], arguments: Any) -> dict[str, str | bool]:
    """Return XLA's options for products of such arguments; what `$XLA_FLAGS` says of them goes first.

    `processor` is what `kernels.processor.facts` tells of it.
    """
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(arguments)}
    narrow = dtypes & {jnp.dtype(name) for name in ("bfloat16", "float8_e4m3fn", "int8")}
    flags = processor.get("flags", "").split()
    slower = processor.get("vendor_id") == "GenuineIntel" or ("avx2" in flags and "avx512f" not in flags)
    faster = platform == "cpu" and slower and not narrow
    return OTHER_PRODUCTS if faster and YNN not in os.environ.get("XLA_FLAGS", "") else {}
