"""The supervisor of `jaxl serve --replicas N`: Ray on this machine, with the HTTP server in this process."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from jaxl.errors import CheckpointError
from jaxl.server.ray.local import load_replica, share, start_ray
from jaxl.server.supervisor import ModelLoaded, Supervisor

# nobody may import Ray before it is started
if TYPE_CHECKING:
    from jaxl.server.ray.fleet import Fleet

APPLICATION = "jaxl"
# how the last line of an error begins that is the model's own
OWN_ERROR = re.compile(r"jaxl\.errors\.\w+: (.*)")


@dataclass(kw_only=True, eq=False)
class ReplicaSupervisor(Supervisor):
    """Has a fleet of `count` replicas for its engine, which share this machine's chips; each calls `load`.

    SIGHUP replaces them one by one by new ones, which read the model anew. Ray stops one before it starts another, so
    that one is missing if the new ones fail.
    """

    count: int
    fleet: Fleet | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)

    def run(self) -> None:
        """Serve until a signal ends it. Raises InputError, and what loading the model for the first time does."""
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

    def _load(self) -> Fleet:
        """Start the replicas, or replace them. Raises InputError, and JaxlError if they do not start."""
        import ray
        from ray import serve

        from jaxl.server.ray.deployment import replicas
        from jaxl.server.ray.fleet import Fleet

        if not self.starts:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        self.starts += 1
        scale = share(ray.cluster_resources(), self.count)
        load = partial(load_replica, self.load, self.starts)
        application = replicas(load, scale, self.engine_options, self.settings)
        try:
            handle = serve.run(application, name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            reasons = [each.message for each in serve.status().applications[APPLICATION].deployments.values()]
            own = OWN_ERROR.findall("\n".join(reasons))
            raise CheckpointError(own[-1] if own else f"the replicas do not start: {reasons or error}") from None
        if self.fleet is None:
            self.fleet = Fleet(handle, self.engine_options.max_waiting)
            self.fleet.start()
        return self.fleet

    def _take(self, loaded: ModelLoaded) -> None:
        from jaxl.server.ray.deployment import Threads, threads

        if self.engine is not None:
            self.say(f"replaced the replicas of {self.settings.model} in {loaded.seconds:.1f} s")
            return
        fleet: Fleet = loaded.backend
        description = fleet.describe()
        kind, chips = description.chips
        app = self._app(fleet, description.defaults, (kind, chips * self.count))
        said = f"{self.count} replicas ready after {loaded.seconds:.1f} s"
        self._open(fleet, Threads(app, threads(fleet.max_waiting)), said)

    def _kept(self) -> str:
        assert self.fleet is not None
        return f"{self.fleet.stats().places // self.fleet.places} of {self.count} replicas keep the old one"
