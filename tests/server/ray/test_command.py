"""`jaxl serve --replicas` as a process: it drains, leaves nothing behind, and listens on this machine alone."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jaxl.errors import InputError
from jaxl.server.ray.local import share

Until = Callable[[Callable[[], bool]], None]

# no measure of anything: only who fails waits so long
A_WHILE = 600.0

# what `jaxl serve` does, with a model that needs no jax
PROGRAM = """
import sys
from pathlib import Path
import uvicorn
from jaxl.cli.serve import announce, say
from jaxl.engine.fake import FakeBackend
from jaxl.errors import CheckpointError
from jaxl.server import logs
from jaxl.server.app import Front
from jaxl.server.ray.supervisor import ReplicaSupervisor
from jaxl.server.settings import EngineOptions, HttpOptions, Settings
from jaxl.server.supervisor import listen

class Backend(FakeBackend):
    defaults = {"sizes": ((32, 32),), "scheduler": "euler", "steps": 10, "guidance_scale": 4.0}

broken = Path(sys.argv[1])
def load():
    if broken.exists():
        raise CheckpointError("the model is broken")
    return Backend(0.01, places=2)

logs.configure()
front, listener = Front(), listen(HttpOptions(port=0))
config = uvicorn.Config(front, log_config=None, log_level="warning", lifespan="off", timeout_graceful_shutdown=5)
try:
    ReplicaSupervisor(
        count=2, server=uvicorn.Server(config), listener=listener, front=front, load=load, settings=Settings(),
        engine_options=EngineOptions(8), announce=lambda: announce(listener, Settings(), False), say=say,
        usd_per_hour=lambda kind, count: None,
    ).run()
except CheckpointError as error:
    sys.exit(str(error))
"""


class Server:
    def __init__(self, broken: Path):
        """The model cannot be loaded while there is a file `broken`. There is no home folder to write to."""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, broken],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HOME": os.devnull},
        )
        assert self.process.stdout is not None
        self.client = httpx.Client(base_url=self.process.stdout.readline().strip(), timeout=A_WHILE)
        self.said: list[str] = []  # of the log, the messages
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(json.loads(line)["message"] if line.startswith("{") else line)

    def status(self) -> str:
        return self.client.get("/health/ready").json()["status"]

    def draw(self, steps: int) -> httpx.Response:
        return self.client.post("/v1/images/generations", json={"prompt": "a", "num_inference_steps": steps})

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"jaxl:{name} "))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return tmp_path / "broken"


@pytest.fixture
def server(broken: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    if getattr(request, "param", None) == "broken":
        broken.touch()
    server = Server(broken)
    with server.process, server.client:
        yield server
        server.process.kill()
    server.reading.join()


def test_from_loading_to_drained(server: Server, broken: Path, until: Until) -> None:
    assert server.status() == "loading"
    until(lambda: server.status() == "ready")
    assert any(line.startswith("2 replicas ready after") for line in server.said)
    family = [psutil.Process(server.process.pid)]
    family += family[0].children(recursive=True)
    addresses = {each.laddr.ip for own in family for each in own.net_connections() if each.status == "LISTEN"}
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

    broken.touch()
    server.process.send_signal(signal.SIGHUP)
    kept = "the model was not loaded anew, and 1 of 2 replicas keep the old one: the model is broken"
    until(lambda: kept in server.said)

    statuses: list[int] = []
    drawing = [threading.Thread(target=lambda: statuses.append(server.draw(200).status_code)) for _ in range(4)]
    for thread in drawing:
        thread.start()
    until(lambda: server.metric("slots_in_use") == 2)
    until(lambda: server.metric("num_images_waiting") == 2)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.status() == "draining")
    assert server.draw(1).json()["error"]["code"] == "draining"
    for thread in drawing:
        thread.join(A_WHILE)
    assert statuses == [200] * 4
    assert server.process.wait(A_WHILE) == 0
    _, alive = psutil.wait_procs(family, timeout=A_WHILE)
    assert not alive


@pytest.mark.parametrize("server", ["broken"], indirect=True)
def test_model_that_cannot_be_loaded(server: Server) -> None:
    assert server.process.wait(A_WHILE) == 1
    server.reading.join()
    assert server.said[-1] == "the model is broken\n"


@pytest.mark.parametrize(
    ("found", "count", "gpus", "tpus"),
    [
        ({"CPU": 8}, 3, 0, 0),
        ({"GPU": 8}, 2, 4, 0),
        ({"TPU": 4}, 1, 0, 4),
        ({"TPU": 4}, 2, 0, 2),
        ({"TPU": 4}, 3, 0, 1),
        ({"TPU": 8}, 1, 0, 8),
    ],
)
def test_shares(found: dict[str, float], count: int, gpus: int, tpus: int) -> None:
    scale = share(found, count)
    assert (scale.replicas, scale.gpus, scale.tpus) == (count, gpus, tpus)


@pytest.mark.parametrize("found", [{"GPU": 2}, {"TPU": 1}])
def test_more_replicas_than_chips(found: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="replicas=3: this machine has"):
        share(found, 3)
