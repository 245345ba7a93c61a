"""Many replicas of an engine on Ray Serve, before which is the same application as before one. Needs the extra `ray`.

The ingress reads requests and gives each to one of the replicas, which own the devices. Only these import jax.
"""

from jaxl.server.ray.application import app

__all__ = ["app"]
