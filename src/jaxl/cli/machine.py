"""The devices of this machine."""

from __future__ import annotations

import os
from typing import Any

from jaxl.errors import JaxlError


def find_devices() -> list[Any]:
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where JAX_PLATFORMS names a missing one
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f" for JAX_PLATFORMS={platforms}" if platforms else ""
        raise JaxlError(f"jax finds no device{asked}{f' ({error})' if str(error) else ''}") from error


def find_chips() -> list[list[Any]]:
    """Return the devices of each chip; a CPU is one chip, whose cores are devices to JAX (`sharding.use_cores`)."""
    import jax

    from jaxl.run.sharding import use_cores

    use_cores()
    found = find_devices()
    config: Any = jax.config
    if found[0].platform != "cpu" or config.jax_num_cpu_devices <= 1:
        return [[each] for each in found]
    hosts = sorted({each.process_index for each in found})
    return [[each for each in found if each.process_index == host] for host in hosts]


def memory_bytes(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("bytes_limit")
