"""Requests that become jobs: accepted at once, drawn in order, and answered as they would have been."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jaxl.engine import Engine
from jaxl.server.app import create_app
from jaxl.server.jobs import runner
from jaxl.server.keys import Key, digest_of, write_line
from jaxl.server.service import Service
from jaxl.server.settings import Settings

GENERATIONS = "/v1/images/generations"
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, jobs=tmp_path / "jobs")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon."""
    for name in ("EVERY", "IDLE", "AGAIN", "LEAST_AGAIN"):
        monkeypatch.setattr(runner, name, 0.01)


@pytest.fixture
def client(app: Any, service: Service) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client
    assert service.jobs is not None
    service.jobs.store.close()


def accepted(client: TestClient, **asked: Any) -> str:
    """The address of a job."""
    answer = client.post(GENERATIONS, json={"prompt": "a", **asked}, headers=ASYNC)
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"]


Ended = Callable[[TestClient, str], dict[str, Any]]


@pytest.fixture
def ended(until: Callable[[Callable[[], bool]], None]) -> Ended:
    def wait(client: TestClient, place: str) -> dict[str, Any]:
        until(lambda: client.get(place).json()["state"] in ("done", "failed"))
        return client.get(place).json()

    return wait


def test_a_job(client: TestClient, ended: Ended) -> None:
    asked = {"prompt": "a", "seed": 3, "n": 2, "output_format": "jpeg"}
    plain = client.post(GENERATIONS, json=asked)
    answer = client.post(GENERATIONS, json=asked, headers={**ASYNC, "X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "respond-async")
    assert answer.json() | {"created": 0, "position": 0} == {
        **{"id": "mine", "object": "job", "state": "queued", "created": 0, "ended": None},
        **{"status": None, "warning": None, "position": 0},
    }
    job = ended(client, answer.headers["Location"])
    assert (job["state"], job["status"]) == ("done", 200)
    made = client.get(job["answer"])
    assert made.json() | {"id": 0, "created": 0} == plain.json() | {"id": 0, "created": 0}
    assert made.content == client.get(job["answer"]).content
    assert [each["id"] for each in client.get("/v1/jobs").json()["data"]] == ["mine"]


def test_requests_without_the_preference_stay_as_they_are(client: TestClient) -> None:
    for prefer in ({}, {"Prefer": "wait=10"}, {"Prefer": "respond-asynchronously"}):
        assert client.post(GENERATIONS, json={"prompt": "a"}, headers=prefer).status_code == 200
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_server_without_jobs_takes_no_notice(engine: Engine, settings: Settings) -> None:
    client = TestClient(create_app(Service(engine, replace(settings, jobs=None))))
    assert client.post(GENERATIONS, json={"prompt": "a"}, headers=ASYNC).status_code == 200
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.get("/v1/jobs/none").json()["error"]["code"] == "job_not_found"


def test_an_edit_as_a_form(client: TestClient, ended: Ended) -> None:
    """Its picture is kept with it, however it came."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    form = {"files": {"image": stream.getvalue()}, "data": {"prompt": "a", "seed": "5"}}
    plain = client.post("/v1/images/edits", **form)
    answer = client.post("/v1/images/edits", **form, headers=ASYNC)
    made = client.get(ended(client, answer.headers["Location"])["answer"]).json()
    assert made["data"] == plain.json()["data"]
    as_json = {"prompt": "a", "seed": 5, "image": base64.b64encode(stream.getvalue()).decode()}
    answer = client.post("/v1/images/edits", json=as_json, headers=ASYNC)
    assert client.get(ended(client, answer.headers["Location"])["answer"]).json()["data"] == plain.json()["data"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 11}, "n=11: give at most 10"),
        ({"size": "16x16"}, "size=16: this server draws 32x32, 64x32"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"loras": {"nobody": 1.0}}, "loras='nobody'"),
        ({"stream": True}, "stream=True: a job has one answer, which is kept; leave it out"),
        ({"response_format": "url"}, "response_format='url': a job has one answer"),
        ({"keep": True}, "keep=True: a job has one answer"),
        ({"deadline": 1e9}, "deadline=1000000000.0: give seconds"),
    ],
)
def test_what_no_job_can_have_is_refused_at_once(client: TestClient, asked: dict[str, Any], message: str) -> None:
    answer = client.post(GENERATIONS, json={"prompt": "a", **asked}, headers=ASYNC)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_the_same_twice_is_one_job(client: TestClient, ended: Ended) -> None:
    """As of a client that did not hear that it was accepted; another request under the id is refused."""
    headers = {**ASYNC, "X-Request-Id": "mine"}
    first, again, other = (
        client.post(GENERATIONS, json={"prompt": prompt}, headers=headers) for prompt in ("a", "a", "b")
    )
    assert (again.status_code, again.json()["created"]) == (202, first.json()["created"])
    assert (other.status_code, other.json()["error"]["param"]) == (409, "X-Request-Id")
    ended(client, first.headers["Location"])
    assert client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).json()["state"] == "done"


def test_in_order_of_priority(client: TestClient, asked: list[Any], ended: Ended, monkeypatch: Any) -> None:
    monkeypatch.setattr(runner.Runner, "_has_room", lambda self: False)
    places = [accepted(client, prompt=f"{number}", priority=number % 3) for number in range(6)]
    asked.clear()
    monkeypatch.setattr(runner.Runner, "_has_room", lambda self: not self.running)
    for place in places:
        ended(client, place)
    assert [each["prompt"] for each in asked] == [f"{i}" for first in (2, 1, 0) for i in range(first, 6, 3)]


@pytest.mark.parametrize("row_seconds", [0.01])
def test_what_waits_is_not_in_memory(client: TestClient, engine: Engine, service: Service, until: Any) -> None:
    places = [accepted(client, num_inference_steps=1000) for _ in range(12)]
    until(lambda: engine.stats().running == 4)
    until(lambda: engine.stats().waiting >= 4)
    assert len(engine.tickets()) <= 4 + runner.AHEAD
    waiting = client.get(places[-1]).json()
    assert (waiting["state"], waiting["position"]) == ("queued", 11)
    running = client.get(places[0]).json()
    assert (running["state"], running["total"]) == ("running", 1000)
    for place in places:
        assert client.delete(place).json()["deleted"]
    assert client.get(places[0]).status_code == client.get(places[-1]).status_code == 404
    until(lambda: engine.tickets() == [])
    assert service.jobs is not None
    assert service.jobs.store.counts() == (0, 0, 0)


def test_a_failed_job_has_its_error(client: TestClient, ended: Ended, service: Service, monkeypatch: Any) -> None:
    monkeypatch.setattr(service.engine, "check", lambda arguments: None)  # as a fleet, which cannot tell
    job = ended(client, accepted(client, loras={"nobody": 1.0}))
    assert (job["state"], job["status"]) == ("failed", 400)
    answer = client.get(job["answer"])
    assert answer.status_code == 400
    assert "loras='nobody'" in answer.json()["error"]["message"]


def test_devices_that_fail_once(client: TestClient, backend: Any, ended: Ended, monkeypatch: Any) -> None:
    """The job is drawn again."""
    batch, left = backend.batch, [1]

    def failing(lane: Any, size: int) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("the devices are on fire")
        return batch(lane, size)

    monkeypatch.setattr(backend, "batch", failing)
    assert ended(client, accepted(client))["state"] == "done"


def test_a_disk_that_is_full(client: TestClient, service: Service, ended: Ended) -> None:
    """A clear line, and the server stays up; what was accepted waits, and nothing is lost."""
    assert service.jobs is not None
    store = service.jobs.store
    (pages,) = store._rows.execute("PRAGMA page_count").fetchone()
    store._rows.execute(f"PRAGMA max_page_count = {pages}")
    places, answer = [], None
    for _ in range(1000):
        answer = client.post(GENERATIONS, json={"prompt": "a" * 2000}, headers={**ASYNC})
        if answer.status_code != 202:
            break
        places.append(answer.headers["Location"])
    assert answer is not None
    assert answer.status_code == 507
    message = "the disk of the jobs did not do it (database or disk is full)"
    assert answer.json()["error"]["message"] == message
    assert client.post(GENERATIONS, json={"prompt": "a"}).status_code == 200
    store._rows.execute("PRAGMA max_page_count = 100000")
    for place in places:
        assert ended(client, place)["state"] == "done"


def test_a_disk_that_cannot_be_written(client: TestClient, service: Service, ended: Ended) -> None:
    assert service.jobs is not None
    place = accepted(client)
    ended(client, place)
    store = service.jobs.store
    store._rows.execute("PRAGMA query_only = 1")
    assert client.post(GENERATIONS, json={"prompt": "a"}, headers=ASYNC).status_code == 507
    assert client.delete(place).status_code == 507
    assert client.get(f"{place}/answer").status_code == 200
    store._rows.execute("PRAGMA query_only = 0")
    assert ended(client, accepted(client))["state"] == "done"


def test_room(client: TestClient, service: Service, ended: Ended) -> None:
    """Answers that were fetched make room; those that were not never do."""
    assert service.jobs is not None
    store = service.jobs.store
    first = accepted(client)
    ended(client, first)
    store.most = store.counts()[2] + 5
    answer = client.post(GENERATIONS, json={"prompt": "a"}, headers=ASYNC)
    assert answer.status_code == 507
    assert "fetch answers, or delete jobs" in answer.json()["error"]["message"]
    client.get(f"{first}/answer")
    ended(client, accepted(client))
    assert client.get(first).status_code == 404


class TestKeys:
    @pytest.fixture
    def settings(self, settings: Settings, tmp_path: Path) -> Settings:
        lines = [write_line(Key(name, digest_of(name), at_once=2)) for name in ("ada", "bob")]
        (tmp_path / "keys").write_text("\n".join(lines))
        return replace(settings, keys=tmp_path / "keys")

    @staticmethod
    def auth(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {name}"}

    def test_of_another_or_guessed(self, client: TestClient, until: Any) -> None:
        """A job is its key's alone: to others it is as if there were none."""
        headers = {**ASYNC, **self.auth("ada")}
        place = client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).headers["Location"]
        until(lambda: client.get(place, headers=self.auth("ada")).json()["state"] == "done")
        guessed = place.rsplit("/", 1)[0] + "/guessed"
        for method, ending in (("GET", ""), ("GET", "/answer"), ("DELETE", "")):
            for address in (place, guessed):
                answer = client.request(method, address + ending, headers=self.auth("bob"))
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
        assert client.get("/v1/jobs", headers=self.auth("bob")).json()["data"] == []
        assert client.get(place).status_code == 401
        assert client.get(place, headers=self.auth("ada")).status_code == 200

    def test_limits_hold_jobs_up_and_lose_none(self, client: TestClient, until: Any) -> None:
        headers = {**ASYNC, **self.auth("ada")}
        places = [
            client.post(GENERATIONS, json={"prompt": f"{i}", "n": 2}, headers=headers).headers["Location"]
            for i in range(4)
        ]
        for place in places:
            until(lambda place=place: client.get(place, headers=self.auth("ada")).json()["state"] == "done")
        answer = client.post(GENERATIONS, json={"prompt": "a", "n": 3}, headers=headers)
        assert answer.json()["error"]["message"] == "n=3: the key 'ada' has at_once=2; give at most 2"

    def test_of_a_key_that_is_gone(
        self, client: TestClient, settings: Settings, service: Service, monkeypatch: Any, until: Any
    ) -> None:
        assert service.jobs is not None
        monkeypatch.setattr(type(service.jobs), "_has_room", lambda self: False)
        headers = {**ASYNC, **self.auth("ada")}
        id = client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).json()["id"]
        assert settings.keys is not None
        settings.keys.write_text(write_line(Key("bob", digest_of("bob"))))
        monkeypatch.undo()
        until(lambda: service.jobs is not None and service.jobs.store.counts()[1] == 1)
        found = service.jobs.store.find(id, "ada")
        assert found is not None
        assert (found.status, json.loads(service.jobs.store.answer(found))["error"]["code"]) == (401, "invalid_api_key")
