"""What Prometheus reads of an engine at work, and that the dashboard and the page ask for nothing else."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import jaxl
from jaxl.engine import Engine, Request, Ticket
from jaxl.engine.backend import Served
from jaxl.engine.fake import FakeBackend
from jaxl.errors import CancelledError
from jaxl.server.jobs.runner import Runner
from jaxl.server.jobs.store import JobStore
from jaxl.server.keys import ANYBODY, Key, KeyRing
from jaxl.server.metrics import CONTENT_TYPE, Metrics

ROOT = Path(jaxl.__file__).parents[2]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(FakeBackend(places=4)) as engine:
        yield engine


def read(metrics: Metrics) -> dict[str, float]:
    """The samples by name and labels, such as `name{label=value}`."""
    samples = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def finished(engine: Engine, metrics: Metrics, images: int, steps: int, key: Key = ANYBODY, **more: str) -> Ticket:
    ticket = engine.submit(Request({"prompt": "a", "num_images": images, "steps": steps, **more}))
    ticket.future.result(timeout=600)
    metrics.observe(ticket, "done", key)
    return ticket


def test_counts(engine: Engine) -> None:
    metrics = Metrics(engine)
    before = read(metrics)
    assert all(value == 0 for name, value in before.items() if name.startswith("jaxl:") and name.endswith("_total"))
    assert before["jaxl:request_success_total{finished_reason=done}"] == 0
    finished(engine, metrics, images=2, steps=5)
    finished(engine, metrics, images=1, steps=7)
    after = read(metrics)
    assert after["jaxl:images_total"] == 3
    assert after["jaxl:steps_total"] == 2 * 5 + 7
    assert after["jaxl:calls_total"] > 0
    assert after["jaxl:busy_seconds_total"] > 0
    assert after["jaxl:request_success_total{finished_reason=done}"] == 2
    assert after["jaxl:e2e_request_latency_seconds_count"] == after["jaxl:request_queue_time_seconds_count"] == 2
    assert after["jaxl:request_queue_time_seconds_sum"] <= after["jaxl:e2e_request_latency_seconds_sum"] < 10
    assert after["jaxl:num_requests_running"] == after["jaxl:num_requests_waiting"] == after["jaxl:slots_in_use"] == 0
    assert after["jaxl:healthy"] == 1
    assert after["process_resident_memory_bytes"] > 0


def test_gauges_are_of_the_moment() -> None:
    with Engine(FakeBackend(row_seconds=0.01, places=2)) as engine:
        metrics = Metrics(engine)
        tickets = [engine.submit(Request({"prompt": "a", "num_images": 2, "steps": 1000})) for _ in range(3)]
        while not engine.stats().running:
            time.sleep(0.001)
        busy = read(metrics)
        assert (busy["jaxl:num_requests_running"], busy["jaxl:num_requests_waiting"]) == (1, 2)
        assert (busy["jaxl:slots_in_use"], busy["jaxl:slots"], busy["jaxl:num_images_waiting"]) == (2, 2, 4)
        for ticket in tickets:
            ticket.cancel()
        for ticket in tickets:
            with pytest.raises(CancelledError):
                ticket.future.result(timeout=600)
            metrics.observe(ticket, "cancelled")
        while engine.stats().running:
            time.sleep(0.001)
        idle = read(metrics)
        assert idle["jaxl:num_requests_running"] == idle["jaxl:num_requests_waiting"] == 0
        assert idle["jaxl:request_success_total{finished_reason=cancelled}"] == 3
        # those that never began have no time in the queue, and none of them a latency
        assert idle["jaxl:request_queue_time_seconds_count"] == 1
        assert idle["jaxl:e2e_request_latency_seconds_count"] == 0


def test_http(engine: Engine) -> None:
    metrics = Metrics(engine)
    for route, status in (("/v1/models", 200), ("/v1/models", 200), ("/v1/images/generations", 429), ('"\n\\', 404)):
        metrics.observe_http(route, status)
    samples = read(metrics)
    assert samples["jaxl:http_requests_total{route=/v1/models,status=200}"] == 2
    assert samples["jaxl:http_requests_total{route=/v1/images/generations,status=429}"] == 1
    assert samples['jaxl:http_requests_total{route="\n\\,status=404}'] == 1


def test_two_servers_in_a_process(engine: Engine) -> None:
    one, other = Metrics(engine), Metrics(engine)
    one.observe_http("/metrics", 200)
    assert "jaxl:http_requests_total{route=/metrics,status=200}" not in read(other)
    assert CONTENT_TYPE.startswith("text/plain; version=")


@pytest.mark.parametrize("files", [("deploy/grafana.json",), ("docs/serving.md", "docs/models.md")])
def test_only_metrics_that_there_are(engine: Engine, files: tuple[str, ...], tmp_path: Path) -> None:
    assert isinstance(engine.backend, FakeBackend)
    engine.backend.served = [Served("a", "a", swaps={"disk": 1})]
    metrics, key = Metrics(engine), Key("ada", "")
    finished(engine, metrics, images=1, steps=1, key=key, model="a")
    metrics.observe_http("/metrics", 200)
    metrics.judged("pass")
    metrics.refuse(key, "at_once")
    store = JobStore(tmp_path, 1)
    metrics.add_jobs(Runner(store, engine, KeyRing(), {}, 1.0))
    known = {name.split("{")[0] for name in read(metrics)}
    store.close()
    families = {name.removesuffix("_count") for name in known if name.endswith("_count")}
    asked = set(re.findall(r"\b(?:jaxl:|process_)\w+", "".join((ROOT / file).read_text() for file in files)))
    assert len(asked) > 10
    assert asked <= known | families
    if len(files) > 1:
        documented = {name for name in known if name.startswith("jaxl:") and not name.endswith("_created")}
        assert {re.sub("_(count|sum|bucket)$", "", name) for name in documented} <= asked


def test_the_dashboard() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    inputs = {"${" + each["name"] + "}" for each in dashboard["__inputs"]}
    for panel in panels:
        assert panel["datasource"]["uid"] in inputs, panel["title"]
        assert panel["targets"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in panels]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(set(cells)) == len(cells), "panels overlap"
