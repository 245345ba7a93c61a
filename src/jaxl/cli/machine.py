"""The devices of this machine."""

from __future__ import annotations

import os
from typing import Any

from jaxl.errors import JaxlError


def find_devices() -> list[Any]:
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS names what is not there
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f" for JAX_PLATFORMS={platforms}" if platforms else ""
        raise JaxlError(f"jax finds no device{asked}{f' ({error})' if str(error) else ''}") from error


def memory_bytes(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("bytes_limit")
