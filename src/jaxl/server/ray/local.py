"""Ray for this process alone: started on this machine, whose chips the replicas share. Imports Ray only then."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxl.errors import InputError, JaxlError
from jaxl.extras import install_command

# Ray is an extra, takes a second to import, and reads the environment as it is imported
if TYPE_CHECKING:
    from jaxl.server.ray.scale import Scale

# the numbers of a host's TPU chips that one process can have
CHIPS = (8, 4, 2, 1)
# what Ray reads as it is imported
AS_RAY_IS_IMPORTED = {
    # keeps it on the loopback device where it does not support clusters; everywhere, whatever the name says
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # its processes know each other by a token, which it would keep in the home folder: there may be none to write to
    "RAY_AUTH_MODE": "token",
}


def start_ray(cpus: int) -> None:
    """Start Ray for this process alone: on loopback addresses, without its dashboard. Nobody may have imported it yet.

    Raises JaxlError if it does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # or replicas come after whatever else the machine does
    os.environ.update(AS_RAY_IS_IMPORTED)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

    import ray

    try:
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
        )
    except Exception as error:  # of all kinds, Exception itself among them
        raise JaxlError(f"Ray does not start: {error}") from error


def share(found: Mapping[str, float], count: int) -> Scale:
    """Return what each of `count` replicas has of a machine's chips, as Ray found them. Raises InputError."""
    from jaxl.server.ray.scale import Scale

    gpus, tpus = (int(found.get(name, 0)) for name in ("GPU", "TPU"))
    for kind, number in (("GPUs", gpus), ("TPU chips", tpus)):
        if 0 < number < count:
            raise InputError("replicas", count, f"this machine has {number} {kind}; give at most {number}")
    chips = next((each for each in CHIPS if each * count <= tpus), 0)
    return Scale(count, least=count, most=count, gpus=gpus // count, tpus=chips)


def load_replica(load: Callable[[], Any], start: int) -> Any:
    """Return the backend of a replica; `start` counts them, as another argument is another version to Ray."""
    listen_on_loopback()
    return load()


def listen_on_loopback() -> None:
    """Let the server that Ray opens in each replica, once it is loaded, be on this machine alone.

    It unpickles what it gets, listens everywhere and knows no setting for it. Raises JaxlError if Ray has changed.
    """
    from ray.serve._private import replica

    listen = getattr(replica, "add_port_to_grpc_server", None)
    if listen is None:
        raise JaxlError(f"this version of Ray is not known; {install_command('ray')}")
    setattr(replica, "add_port_to_grpc_server", lambda server, _: listen(server, "127.0.0.1:0"))  # noqa: B010, it is private
