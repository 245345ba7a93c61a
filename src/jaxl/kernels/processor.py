"""The processor of this machine, as Linux tells of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


@cache
def facts() -> Mapping[str, str]:
    """Return what is known of the first core, such as its `vendor_id` and its `flags`; nothing where it is not told."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cores() -> int:
    """Return how many cores this process may use, where the system tells of it, else how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def features() -> str:
    """Return "bfloat16" if its products are faster than float32's, else nothing: the `kind` of a CPU for `Kernels.of`.

    So they are with AMX, and with AMD's AVX512-BF16, but not with Intel's (docs/performance.md).
    """
    flags = facts().get("flags", "").split()
    amd = facts().get("vendor_id") == "AuthenticAMD"
    return "bfloat16" if "amx_bf16" in flags or (amd and "avx512_bf16" in flags) else ""
