"""One program over several hosts, each with devices of its own.

    from jaxl.run import hosts

    hosts.join()  # first of all, on a TPU pod; elsewhere hosts.join("10.0.0.1:9876", hosts=4, host=0)
    pipe, params = jaxl.from_pretrained("tiny")
    result = pipe.generate(params, "a red apple", num_images=32)  # `result` has the images of this host
    hosts.leave()

A host here is a process of jax, though a machine may run several. All hosts make the same calls with the same
arguments, in the same order: images are split over all devices (`jaxl.run.sharding`), and hosts exchange a few flags.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import jax

from jaxl.errors import InputError, JaxlError

__all__ = ["join", "leave"]

SILENCE = 100  # seconds after which a silent host is taken for dead
NEVER = 10**6  # seconds; jax would end the process when it gives up


def join(
    coordinator: str | None = None, hosts: int | None = None, host: int | None = None, *, timeout: float = 300.0
) -> None:
    """Wait until all hosts are there, and tell jax of their devices; call it before anything else of jax.

    Args:
        coordinator: HOST:PORT where host 0 listens, and where the others reach it.
        hosts: how many there are. host: which of them this is, 0 to hosts - 1. All three are left out where jax finds
            them: on TPU pods, in Slurm and in Open MPI.
        timeout: seconds to wait for the others. Later a host that gives no sign of life for so long, or for 100 s,
            is taken for dead, and jax ends the other processes.

    Raises InputError for the arguments. Raises JaxlError if not all hosts come in time; then this process has to
    end, as jax still waits.
    """
    if not timeout >= 1:
        raise InputError("timeout", timeout, "give 1 second or more")
    asked = {"coordinator": coordinator, "hosts": hosts, "host": host}
    if any(value is not None for value in asked.values()):
        _check(**asked)
    config: Any = jax.config
    config.update("jax_enable_preemption_service", False)  # so that SIGTERM ends the process
    try:
        _do(lambda: _initialize(coordinator, hosts, host, timeout), timeout)
    except TimeoutError:
        raise JaxlError(f"{_missing(coordinator, hosts)} within {timeout:g} s; start all hosts at once") from None
    except ValueError as error:
        remedy = "neither a TPU pod, nor Slurm, nor Open MPI tells where it is; give coordinator, hosts and host"
        raise InputError("coordinator", coordinator, remedy) from error
    except RuntimeError as error:
        raise JaxlError(f"this host cannot join the others: {' '.join(str(error).split())}") from error


def leave(patience: float | None = None) -> None:
    """Wait until all hosts are here, and part from them, so that each may end.

    `patience` is the most seconds to wait, for a host that failed, maybe alone.
    """
    try:
        _do(jax.distributed.shutdown, patience)
    except TimeoutError:
        pass
    except RuntimeError as error:
        raise JaxlError(f"the hosts did not end together: {' '.join(str(error).split())}") from error


def _initialize(coordinator: str | None, hosts: int | None, host: int | None, timeout: float) -> None:
    jax.distributed.initialize(
        coordinator,
        hosts,
        host,
        cluster_detection_method=None if coordinator is None else "deactivate",  # else jax would choose devices as well
        initialization_timeout=NEVER,
        heartbeat_timeout_seconds=int(min(timeout, SILENCE)),
    )


def _check(coordinator: str | None, hosts: int | None, host: int | None) -> None:
    for name, value in (("coordinator", coordinator), ("hosts", hosts), ("host", host)):
        if value is None:
            raise InputError(name, None, "coordinator, hosts and host go together; give all of them, or none")
    address = re.fullmatch(r"\S+:([0-9]{1,5})", str(coordinator))
    if not address or not 0 < int(address[1]) < 2**16:
        raise InputError("coordinator", coordinator, "give HOST:PORT, of host 0, such as 10.0.0.1:9876")
    if type(hosts) is not int or hosts < 1:
        raise InputError("hosts", hosts, "give how many there are, 1 or more")
    if type(host) is not int or not 0 <= host < hosts:
        raise InputError("host", host, f"give 0 to {hosts - 1}, another one to each host")


def _missing(coordinator: str | None, hosts: int | None) -> str:
    """Return which hosts are missing, for an error."""
    if coordinator is None:
        return "not all hosts came"
    name, _, port = coordinator.rpartition(":")
    try:
        with closing(socket.create_connection((name.strip("[]"), int(port)), timeout=5)):
            return f"not all {hosts} hosts came to {coordinator}"
    except OSError as error:
        return f"no host 0 was at {coordinator} ({error.strerror or error})"


def _do(work: Callable[[], None], seconds: float | None) -> None:
    """Do work in another thread. Raises TimeoutError after `seconds`; the thread goes on then."""
    future: Future[None] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=do, name="hosts", daemon=True).start()
    future.result(seconds)
