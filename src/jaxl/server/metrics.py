"""Metrics for Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats/.

Names that vLLM has too mean the same here (https://docs.vllm.ai/en/latest/usage/metrics.html), so that dashboards and
autoscalers made for it work. `docs/serving.md` lists all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from jaxl.engine.backend import Place, Served
from jaxl.errors import OutputError
from jaxl.residency.policy import total
from jaxl.server.history import History
from jaxl.server.keys import ANYBODY

if TYPE_CHECKING:
    from jaxl.engine import AnyEngine, Ticket
    from jaxl.server.jobs.runner import Runner
    from jaxl.server.keys import Key

Outcome = Literal["done", "cancelled", "deadline", "failed"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: AnyEngine):
        self.history = History()
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(engine))
        ProcessCollector(registry=self._registry)
        self._finished = Counter(
            "jaxl:request_success",
            "Requests to the engine that ended, by how.",
            ["finished_reason"],
            registry=self._registry,
        )
        for outcome in get_args(Outcome):
            self._finished.labels(outcome)  # a rate needs the 0 to begin with
        self._queue = Histogram(
            "jaxl:request_queue_time_seconds",
            "Time until a request's first image began.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._latency = Histogram(
            "jaxl:e2e_request_latency_seconds",
            "Time until all images of a request were done, for those that were.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._images = Counter(
            "jaxl:images_by_size",
            "Images of requests that were done, by the size drawn.",
            ["size"],
            registry=self._registry,
        )
        self._of_model = Counter(
            "jaxl:images_by_model",
            "Images of requests that were done, by the model that drew them, where there are several.",
            ["model"],
            registry=self._registry,
        )
        self._answers = Counter(
            "jaxl:http_requests", "HTTP requests, by route and status.", ["route", "status"], registry=self._registry
        )
        self._images_by_key = Counter(
            "jaxl:images_by_key", "Images drawn, by the name of the client's key.", ["key"], registry=self._registry
        )
        self._seconds_by_key = Counter(
            "jaxl:device_seconds_by_key",
            "Seconds of the devices that images took, each its part of a batch, by the name of the client's key.",
            ["key"],
            registry=self._registry,
        )
        self._refused_by_key = Counter(
            "jaxl:refused_by_key",
            "Requests that were told to come back, by the name of the key and the limit that it had reached.",
            ["key", "limit"],
            registry=self._registry,
        )
        self._judged = Counter(
            "jaxl:filtered",
            "Pictures that the operator's filter saw, by its verdict.",
            ["verdict"],
            registry=self._registry,
        )

    def add_jobs(self, runner: Runner) -> None:
        """Tell of jobs too."""
        self._registry.register(_Jobs(runner))

    def judged(self, verdict: str | None) -> None:
        """Count a picture that a filter has seen; None if it failed."""
        self._judged.labels(verdict or "failed").inc()

    def refuse(self, key: Key, limit: str) -> None:
        """Count a request that a limit of its key has turned away."""
        self._refused_by_key.labels(key.name, limit).inc()

    @contextmanager
    def charged(self, key: Key) -> Iterator[None]:
        """Count the seconds that work beside the engine takes as its key's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if key.name:
                self._seconds_by_key.labels(key.name).inc(time.perf_counter() - began)

    def observe(self, ticket: Ticket, outcome: Outcome, key: Key = ANYBODY) -> None:
        """Count a request to the engine that ended just now."""
        self._finished.labels(outcome).inc()
        if key.name:
            self._images_by_key.labels(key.name).inc(sum(image is not None for image in ticket.images))
            self._seconds_by_key.labels(key.name).inc(ticket.seconds)
        if ticket.started is not None:
            self._queue.observe(ticket.started - ticket.submitted)
        past = self.history.add(ticket, done=outcome == "done")
        if past.done:
            self._latency.observe(past.ended - past.submitted)
            width, height = (ticket.request.arguments.get(name) for name in ("width", "height"))
            drawn = sum(image is not None for image in ticket.images)
            self._images.labels(f"{width}x{height}").inc(drawn)
            if model := ticket.request.arguments.get("model"):
                self._of_model.labels(model).inc(drawn)

    def observe_http(self, route: str, status: int) -> None:
        """Count an HTTP request. `route` is the route's path, of which there are few, not the request's."""
        self._answers.labels(route, str(status)).inc()

    def render(self) -> bytes:
        """Return every metric, in the text format, whose media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """The engine's own counts and gauges, read when Prometheus asks."""

    def __init__(self, engine: AnyEngine):
        self._engine = engine

    def describe(self) -> list[Metric]:
        return []  # so that registering does not ask the engine

    def collect(self) -> Iterator[Metric]:
        stats, tickets = self._engine.stats(), self._engine.tickets()
        running = sum(ticket.started is not None for ticket in tickets)
        for name, text, value in (
            ("num_requests_running", "Requests with an image that has begun.", running),
            ("num_requests_waiting", "Requests none of whose images has begun.", len(tickets) - running),
            ("num_images_waiting", "Images that have not begun.", stats.waiting),
            ("slots_in_use", "Images in the making.", stats.running),
            ("slots", "Images that the open batches have places for.", stats.places),
            ("images_per_second", "Images finished in a second, of late.", stats.images_per_second),
            ("steps_per_second", "Steps in a second, over all images, of late.", stats.rows_per_second),
            ("healthy", "1 while the engine works.", float(self._engine.healthy)),
        ):
            yield GaugeMetricFamily(f"jaxl:{name}", text, value)
        for name, text, value in (
            ("images", "Images finished.", stats.images_done),
            ("steps", "Steps, each of one image: calls of the network for it.", stats.rows_done),
            ("calls", "Calls of the devices, each of some steps of a batch.", stats.calls),
            ("busy_seconds", "Time in calls of the devices.", stats.busy_seconds),
            ("requests_refused", "Requests that were turned away because too many waited.", stats.requests_refused),
        ):
            yield CounterMetricFamily(f"jaxl:{name}", text, value)
        yield from _of_models(self._engine.models())


class _Jobs(Collector):
    """The jobs of a server, read when Prometheus asks; while the disk cannot be read, none of them is told."""

    def __init__(self, runner: Runner):
        self._runner = runner

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        running = len(self._runner.running)
        with suppress(OutputError):
            unended, kept, size = self._runner.store.counts()
            for name, text, value in (
                ("waiting", "Jobs that wait to be drawn.", max(unended - running, 0)),
                ("running", "Jobs that are being drawn.", running),
                ("kept", "Jobs whose answers are kept.", kept),
                ("bytes", "Bytes of the files of all jobs.", size),
            ):
                yield GaugeMetricFamily(f"jaxl:jobs_{name}", text, value)
        family = CounterMetricFamily("jaxl:jobs", "Jobs that ended, by how.", labels=["state"])
        for state, count in self._runner.ended.items():
            family.add_metric([state], count)
        yield family


def _of_models(models: Sequence[Served]) -> Iterator[Metric]:
    """Yield where models are, and how often they came onto the devices."""
    places = GaugeMetricFamily("jaxl:models", "Models, by where their parameters are.", labels=["place"])
    bytes_ = GaugeMetricFamily(
        "jaxl:model_bytes", "Bytes of their parameters there, equal ones once.", labels=["place"]
    )
    swaps = CounterMetricFamily("jaxl:model_swaps", "Models that came onto the devices.", labels=["model", "source"])
    seconds = CounterMetricFamily("jaxl:model_swap_seconds", "Time in which a model came.", labels=["model"])
    for place in get_args(Place):
        there = [each for each in models if each.place == place]
        places.add_metric([place], len(there))
        bytes_.add_metric([place], total(each.parts for each in there))
    for each in models:
        seconds.add_metric([each.name], each.swap_seconds)
        for source, count in each.swaps.items():
            swaps.add_metric([each.name, source], count)
    if models:
        yield from (places, bytes_, swaps, seconds)
