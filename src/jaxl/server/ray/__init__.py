"""Many replicas of an engine on Ray Serve, behind the same application as a single engine. Needs the extra `ray`.

The ingress reads requests and gives each to one of the replicas, which own the devices. Only replicas import jax.
"""

from jaxl.server.ray.application import app

__all__ = ["app"]
