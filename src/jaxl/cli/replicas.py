"""`jaxl serve --replicas N`: Ray on this machine, with the HTTP server in this process."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from jaxl.cli.serve import Loaded, Supervisor, say, usd_per_hour
from jaxl.errors import CheckpointError, InputError, JaxlError
from jaxl.extras import install_command

# Ray is an extra, and takes a second to import
if TYPE_CHECKING:
    from jaxl.server.ray.fleet import Fleet
    from jaxl.server.ray.scale import Scale

APPLICATION = "jaxl"
# the numbers of a host's TPU chips that one process can have
CHIPS = (8, 4, 2, 1)
# what Ray reads as it is imported
AS_RAY_IS_IMPORTED = {
    # keeps it on the loopback device where it does not support clusters; everywhere, whatever the name says
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # its processes know each other by a token, which it would keep in the home folder: there may be none to write to
    "RAY_AUTH_MODE": "token",
}
# how the last line of an error begins that is the model's own
OWN_ERROR = re.compile(r"jaxl\.errors\.\w+: (.*)")


def run_replicas(count: int, **supervisor: Any) -> None:
    """Serve with so many replicas on this machine, which share its chips, until a signal ends it.

    supervisor: what `Supervisor` takes; each replica calls its `load`. Raises InputError and what loading does.
    """
    if find_spec("ray") is None:
        raise typer.TyperException(f"ray is missing, which replicas need; {install_command('ray')}")
    ReplicaSupervisor(count, **supervisor).run()


class ReplicaSupervisor(Supervisor):
    """Has a fleet of replicas for its engine.

    SIGHUP replaces them one by one by new ones, which read the model anew. Ray stops one before it starts another, so
    that one is missing if the new ones fail.
    """

    can_unload = False

    def __init__(self, count: int, **supervisor: Any):
        super().__init__(**supervisor)
        self.count = count
        self.load_replica = self.load
        self.load = self._start
        self.fleet: Fleet | None = None
        self.starts = 0

    def run(self) -> None:
        try:
            # in the main thread: Linux kills Ray's processes with the thread that has started them
            start_ray(self.count)
            super().run()
        finally:
            if self.fleet is not None:
                self.fleet.close()
            if self.starts:
                from ray import serve

                serve.shutdown()
            if "ray" in sys.modules:
                import ray

                ray.shutdown()

    def _start(self) -> Fleet:
        """Start the replicas, or replace them. Raises InputError, and JaxlError if they do not start."""
        import ray
        from ray import serve

        from jaxl.server.ray.deployment import replicas
        from jaxl.server.ray.fleet import Fleet

        if not self.starts:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        self.starts += 1
        scale = share(ray.cluster_resources(), self.count)
        load = partial(loaded, self.load_replica, self.starts)
        application = replicas(load, scale, self.engine_options, self.settings)
        try:
            handle = serve.run(application, name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            reasons = [each.message for each in serve.status().applications[APPLICATION].deployments.values()]
            own = OWN_ERROR.findall("\n".join(reasons))
            raise CheckpointError(own[-1] if own else f"the replicas do not start: {reasons or error}") from None
        if self.fleet is None:
            self.fleet = Fleet(handle, self.engine_options["max_waiting"])
            self.fleet.start()
        return self.fleet

    def _take(self, loaded: Loaded) -> None:
        from jaxl.server.ray.deployment import Threads, threads

        if self.engine is not None:
            say(f"replaced the replicas of {self.settings.model} in {loaded.seconds:.1f} s")
            return
        fleet: Fleet = loaded.backend
        description = fleet.describe()
        kind, chips = description.chips
        usd = usd_per_hour((kind, chips * self.count), self.prices)
        app = Threads(self._app(fleet, description.defaults, usd), threads(fleet.max_waiting))
        self._open(fleet, app, f"{self.count} replicas ready after {loaded.seconds:.1f} s")

    def _kept(self) -> str:
        assert self.fleet is not None
        return f"{self.fleet.stats().places // self.fleet.places} of {self.count} replicas keep the old one"


def loaded(load: Callable[[], Any], start: int) -> Any:
    """The backend of a replica; `start` counts them, as another argument is another version to Ray."""
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


def start_ray(cpus: int) -> None:
    """Ray for this process alone: on loopback addresses, and without its dashboard. Nobody may have imported it yet.

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
    """What each of `count` replicas has of a machine's chips, as Ray found them."""
    from jaxl.server.ray.scale import Scale

    gpus, tpus = (int(found.get(name, 0)) for name in ("GPU", "TPU"))
    for kind, number in (("GPUs", gpus), ("TPU chips", tpus)):
        if 0 < number < count:
            raise InputError("replicas", count, f"this machine has {number} {kind}; give at most {number}")
    chips = next((each for each in CHIPS if each * count <= tpus), 0)
    return Scale(count, least=count, most=count, gpus=gpus // count, tpus=chips)
