"""The deployments for Ray Serve: the replicas, and an ingress in front of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxl.server import logs
from jaxl.server.app import Front, create_app
from jaxl.server.filters import load
from jaxl.server.keys import KeyRing
from jaxl.server.ray.fleet import Fleet
from jaxl.server.ray.replica import Replica
from jaxl.server.ray.router import BucketAffineRouter
from jaxl.server.ray.scale import Scale
from jaxl.server.service import Service
from jaxl.server.settings import EngineOptions, Settings, read_keys

# seconds between Ray's health checks of a replica; a dead one is replaced after the next
HEALTH_PERIOD = 1.0
# seconds between its questions for a replica's places, 0 until the first answer, so that no request joins another there
ROUTING_PERIOD = 10.0
# in effect no limit: the engine's queue has its own, and knows when there will be room
MOST_ONGOING = 10_000
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def replicas(load: Callable[[], Any], scale: Scale, engine_options: EngineOptions, settings: Settings) -> Any:
    """Return the application of replicas, each with the backend that `load` returns.

    A replica that is to go, because fewer are needed or a new version comes, gets no more requests, and has the longest
    deadline to end those it has.
    """
    scale.check()
    resources: dict[str, Any] = {"num_cpus": scale.cpus, "num_gpus": scale.gpus}
    if scale.tpus:
        resources["resources"] = {"TPU": scale.tpus}
    deployment = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options=resources,
        max_ongoing_requests=MOST_ONGOING,
        health_check_period_s=HEALTH_PERIOD,
        graceful_shutdown_timeout_s=settings.deadline,
        logging_config=QUIET,
        request_router_config={
            "request_router_class": BucketAffineRouter,
            "request_routing_stats_period_s": ROUTING_PERIOD,
        },
        **scale.number(),
    )
    return deployment.bind(load, asdict(engine_options))


class Threads:
    """ASGI middleware that gives asyncio enough threads for calls that block, such as the wait for a replica."""

    def __init__(self, app: ASGIApp, threads: int):
        self.app = app
        self._threads: int | None = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._threads is not None:
            executor = ThreadPoolExecutor(self._threads, thread_name_prefix="request")
            asyncio.get_running_loop().set_default_executor(executor)
            self._threads = None
        await self.app(scope, receive, send)


def without_request_id(app: ASGIApp) -> ASGIApp:
    """Return the app without the request's X-Request-Id in answers: Ray's HTTP server adds it, even twice."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        given = Headers(scope=scope).get("X-Request-Id")

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("X-Request-Id") == given:
                    del headers["X-Request-Id"]
            await send(message)

        await app(scope, receive, send_without)

    return call


def threads(max_waiting: int) -> int:
    """Return how many threads are needed: one for each image that may wait, and some for pictures."""
    return max_waiting + 16


@serve.ingress()
class Ingress:
    """The whole application, in front of the replicas; until there is one it answers that the model is being loaded.

    Clients' keys are read from the environment here, so that Ray does not keep them among its arguments.
    """

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings, max_waiting: int):
        self.settings = replace(settings, api_keys=read_keys())
        # so that mistakes end the deployment
        KeyRing(self.settings.api_keys, self.settings.keys)
        if settings.filter is not None:
            load(settings.filter)
        logs.configure()
        self.fleet = Fleet(replicas, max_waiting)
        self.fleet.start()
        self.front = Front(root_path=settings.root_path)
        self.app_of_server = Threads(without_request_id(self.front), threads(max_waiting))
        threading.Thread(target=self._open, name="wait for a replica", daemon=True).start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self.app_of_server

    def _open(self) -> None:
        settings = replace(self.settings, **self.fleet.describe().defaults)
        self.front.open(create_app(Service(self.fleet, settings)))


def with_ingress(replicas: Any, settings: Settings, max_waiting: int) -> Any:
    """Return the application with HTTP. Its ingress has no devices: it does not even import jax."""
    deployment = serve.deployment(
        Ingress,
        name="Ingress",
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"JAX_PLATFORMS": "cpu"}}},
        max_ongoing_requests=MOST_ONGOING,
        health_check_period_s=HEALTH_PERIOD,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        logging_config=QUIET,
    )
    return deployment.bind(replicas, settings, max_waiting)
