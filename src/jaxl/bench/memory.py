"""The most memory that was in use at a time."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from typing import Any


def peak_memory(devices: Iterable[Any]) -> tuple[int, str]:
    """Bytes of the fullest device, or of this process where devices do not tell, and "device" or "process"."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    if all(peaks):
        return max(peaks), "device"
    return peak_resident(), "process"


def peak_resident(*, children: bool = False) -> int:
    """Bytes of memory of this process, or of the largest of those that it started and that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
