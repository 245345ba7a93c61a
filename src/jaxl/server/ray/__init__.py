"""Many replicas of an engine on Ray Serve, behind the same application as a single engine. Needs the extra `ray`.

The ingress reads requests and gives each to one of the replicas, which own the devices. Only replicas import jax.
"""

from __future__ import annotations

from typing import Any


def app(arguments: dict[str, Any]) -> Any:
    """Return what `serve run jaxl.server.ray:app` runs; `jaxl.server.ray.application` has the arguments."""
    from jaxl.server.ray import application  # which imports Ray; a process that starts Ray does so before

    return application.app(arguments)


__all__ = ["app"]
