"""`jaxl serve` as a process of its own: what it says, what signals do, and what it refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jaxl.cli.app import run
from jaxl.extras import install_command

A_WHILE = 600.0  # no measure of anything: only who fails waits so long

# the command with a model that needs no jax; the test's folder says how it loads
PROGRAM = """
import logging, sys, threading, time, types, warnings
from pathlib import Path
from jaxl.engine.fake import FakeBackend
from jaxl.errors import CheckpointError

class Backend(FakeBackend):
    @property
    def defaults(self):
        return {"sizes": self.sizes_of_images, "scheduler": "euler", "steps": 10, "guidance_scale": 4.0}

def open_backend(model, *, sizes, slots, **options):
    folder = Path(sys.argv[1])
    loads = len(list(folder.glob("load-*")))
    (folder / f"load-{loads}").touch()
    while (folder / "wait").exists():
        time.sleep(0.01)
    if (folder / "loud").exists():
        print("printed", file=sys.stderr)
        print("\\ra bar: 10%\\ra bar: 100%", file=sys.stderr)
        logging.getLogger("library").warning("logged")
        warnings.warn("warned of")
        thread = threading.Thread(target=lambda: 1 / 0, name="broken")
        thread.start()
        thread.join()
    if (folder / "broken").exists():
        raise CheckpointError("the model is broken")
    return Backend(0.01, (32, 32), slots or 4, sizes[1:])

sys.modules["jaxl.backend"] = types.SimpleNamespace(open_backend=open_backend)
import jaxl.cli
sys.exit(jaxl.cli.run(["serve", "--port", "0", *sys.argv[2:]]))
"""


class Server:
    def __init__(self, folder: Path, *arguments: str, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.client = httpx.Client(base_url=self.url, timeout=A_WHILE)

    def status(self, path: str = "/health/ready") -> str:
        return self.client.get(path).json()["status"]

    def draw(self, **asked: Any) -> httpx.Response:
        return self.client.post("/v1/images/generations", json={"prompt": "a", **asked})

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str]]:
        """The exit status, and the messages of the log, with nothing else on standard error."""
        _, errors = self.process.communicate(timeout=A_WHILE)
        self.log = [json.loads(line) for line in errors.splitlines()]
        return self.process.returncode, [line["message"] for line in self.log]


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def start(*arguments: str, **environment: str) -> Server:
        servers.append(Server(tmp_path, *arguments, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.client.close()
        server.process.kill()
        server.process.communicate()


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin to work; the callable waits for what comes of it."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def wait() -> Any:
        thread.join(A_WHILE)
        return results[0]

    return wait


def metric(server: Server, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"jaxl:{name} "))


def test_from_loading_to_drained(start: Start, tmp_path: Path, until: Any) -> None:
    (tmp_path / "wait").touch()
    server = start("--size", "32x32", "--size", "64x32", "--slots", "2")
    assert server.url.startswith("http://127.0.0.1:")
    assert (server.status(), server.status("/health/live")) == ("loading", "live")
    assert server.draw().status_code == 503
    (tmp_path / "wait").unlink()
    until(lambda: server.status() == "ready")
    answer = server.draw(size="64x32", num_inference_steps=2)
    assert answer.json()["size"] == "64x32"
    assert "32x32, 64x32" in server.draw(size="16x16").json()["error"]["message"]

    running = in_thread(lambda: server.draw(n=2, num_inference_steps=200))
    until(lambda: metric(server, "slots_in_use") == 2)
    waiting = in_thread(lambda: server.draw(num_inference_steps=2))
    until(lambda: metric(server, "num_requests_waiting") == 1)
    server.tell(signal.SIGTERM)
    until(lambda: server.status() == "draining")
    assert server.draw().json()["error"]["code"] == "draining"
    assert [wait().status_code for wait in (running, waiting)] == [200, 200]
    code, lines = server.end()
    assert code == 0
    assert [line for line in lines if line.startswith(("loading", "ready", "stopping"))] == [
        "loading tiny",
        next(line for line in lines if line.startswith("ready after") and line.endswith("tiny, 32x32, 64x32")),
        "stopping; running requests have 60 s",
    ]


def test_names(start: Start, until: Any, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    server = start("--model", str(link), "--alias", "dall-e-3")
    until(lambda: server.status() == "ready")
    assert [each["id"] for each in server.client.get("/v1/models").json()["data"]] == ["link", "dall-e-3"]


def test_drain_is_bounded(start: Start, until: Any) -> None:
    server = start("--drain-timeout", "0.2")
    until(lambda: server.status() == "ready")
    answer = in_thread(lambda: server.draw(num_inference_steps=1000))
    until(lambda: metric(server, "num_requests_running") == 1)
    server.tell(signal.SIGINT)
    assert answer().status_code == 499
    assert server.end()[0] == 0


def test_second_signal(start: Start, until: Any) -> None:
    server = start()
    until(lambda: server.status() == "ready")
    answer = in_thread(lambda: server.draw(num_inference_steps=1000))
    until(lambda: metric(server, "num_requests_running") == 1)
    server.tell(signal.SIGTERM)
    until(lambda: server.status() == "draining")
    server.tell(signal.SIGTERM)
    assert answer().status_code == 499
    assert server.end()[0] == 0


def test_reload(start: Start, tmp_path: Path, until: Any) -> None:
    server = start()
    until(lambda: server.status() == "ready")
    answer = in_thread(lambda: server.draw(num_inference_steps=100, seed=1))
    until(lambda: metric(server, "num_requests_running") == 1)
    (tmp_path / "wait").touch()
    server.tell(signal.SIGHUP)
    until(lambda: (tmp_path / "load-1").exists())
    assert server.status() == "ready"
    (tmp_path / "wait").unlink()
    assert answer().status_code == 200
    assert server.draw(num_inference_steps=2).status_code == 200
    (tmp_path / "broken").touch()
    server.tell(signal.SIGHUP)
    until(lambda: (tmp_path / "load-2").exists())
    assert server.draw(num_inference_steps=2).status_code == 200
    server.tell(signal.SIGTERM)
    code, lines = server.end()
    assert code == 0
    assert any(line.startswith("loaded tiny anew in ") for line in lines)
    assert "the model was not loaded anew, and the old one is kept: the model is broken" in lines


def test_the_model_is_unloaded_and_loaded_again(start: Start, tmp_path: Path, until: Any) -> None:
    server = start()
    until(lambda: server.status() == "ready")

    def ask(route: str) -> httpx.Response:
        return server.client.post(f"/sdapi/v1/{route}-checkpoint")

    drawing = in_thread(lambda: server.draw(num_inference_steps=100))
    until(lambda: metric(server, "num_requests_running") == 1)
    assert (ask("unload").status_code, ask("reload").json()) == (409, {})
    assert drawing().status_code == 200
    assert (ask("unload").json(), ask("unload").json(), server.status()) == ({}, {}, "ready")
    (tmp_path / "wait").touch()
    waiting = [in_thread(lambda: server.draw(num_inference_steps=2)) for _ in range(2)]
    until(lambda: (tmp_path / "load-1").exists())
    reload = in_thread(lambda: ask("reload"))
    assert "being loaded" in ask("unload").json()["detail"]
    (tmp_path / "wait").unlink()
    assert [wait().status_code for wait in (*waiting, reload)] == [200, 200, 200]

    assert ask("unload").json() == {}
    (tmp_path / "broken").touch()
    assert "could not be loaded" in server.draw().json()["error"]["message"]
    (tmp_path / "broken").unlink()
    assert ask("reload").json() == {}
    assert (tmp_path / "load-3").exists()
    assert server.draw(num_inference_steps=2).status_code == 200
    assert not (tmp_path / "load-4").exists()

    assert ask("unload").json() == {}
    (tmp_path / "wait").touch()
    late = in_thread(server.draw)
    until(lambda: (tmp_path / "load-4").exists())
    server.tell(signal.SIGTERM)
    assert late().json()["error"]["code"] == "draining"
    code, lines = server.end()
    assert code == 0
    assert lines.count("unloaded tiny; the next request loads it again") == 4
    assert "the model was not loaded anew, and none is there: the model is broken" in lines


def test_keys_from_the_environment_and_open_addresses(start: Start, until: Any) -> None:
    server = start("--api-key", "one", JAXL_API_KEYS="two, three,\n")
    until(lambda: server.status() == "ready")
    assert server.draw().status_code == 401
    for key in ("one", "two", "three"):
        server.client.headers["Authorization"] = f"Bearer {key}"
        assert server.draw(num_inference_steps=1).status_code == 200
    server.tell(signal.SIGTERM)
    server.end()


def test_model_that_cannot_be_loaded(start: Start, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    server = start("--host", "0.0.0.0", "--origin", "null")
    assert server.end()[0] == 2
    assert [(line["level"], line["message"]) for line in server.log] == [
        ("warning", "whoever reaches 0.0.0.0 may draw; --api-key asks for a key"),
        ("warning", "any web page can call as null; --origin null lets them all"),
        ("info", "loading tiny"),
        ("error", "the model is broken"),
    ]


def test_nothing_but_the_log(start: Start, tmp_path: Path) -> None:
    """Whatever others print, log, warn of or fail at."""
    (tmp_path / "loud").touch()
    (tmp_path / "broken").touch()
    server = start()
    server.end()
    said = [(line["level"], line["message"]) for line in server.log]
    assert said[1:-1] == [
        ("info", "printed"),
        ("info", "a bar: 100%"),
        ("warning", "logged"),
        ("warning", "warned of"),
        ("error", "an error that ended the thread broken"),
    ]
    assert server.log[-2]["error"].endswith("ZeroDivisionError: division by zero")


def test_signal_while_loading(start: Start, tmp_path: Path, until: Any) -> None:
    (tmp_path / "wait").touch()
    server = start()
    until(lambda: (tmp_path / "load-0").exists())
    server.tell(signal.SIGTERM)
    assert server.end()[0] == 0


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says that is refused, in one line."""
    assert run(["serve", *arguments]) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.count("\n") == 1
    return line.removeprefix("jaxl: error: ")


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["--port", "70000"], "--port 70000: give a number from 0 to 65535"),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid': no address"),
        (["--host", "192.0.2.1"], "--host '192.0.2.1': "),
        (["--size", "large"], "--size 'large': give WIDTHxHEIGHT"),
        (["--size", "0x8"], "--size '0x8': give WIDTHxHEIGHT"),
        (["--slots", "0"], "--slots 0: "),
        (["--max-waiting", "0"], "--max-waiting 0: "),
        (["--max-connections", "0"], "--max-connections 0: "),
        (["--keep-alive", "0"], "--keep-alive 0: "),
        (["--root-path", "jaxl"], "--root-path 'jaxl': give a path alone"),
        (["--deadline", "0"], "--deadline 0.0: "),
        (["--drain-timeout", "inf"], "--drain-timeout inf: "),
        (["--origin", "example.org"], "--origin 'example.org': give scheme and host"),
        (["--origin", "https://example.org/"], "--origin 'https://example.org/': give scheme and host"),
        (["--api-key", "a b"], "--api-key '...': "),
        (["--api-key", ""], "--api-key '...': "),
        (["--c2pa-cert", "cert.pem"], "--c2pa-key None: "),
        (["--c2pa-key", "key.pem"], "--c2pa-cert None: "),
        (["--c2pa-cert", "no.pem", "--c2pa-key", "no.pem"], "--c2pa-cert 'no.pem': No such file"),
    ],
)
def test_bad_values(capsys: pytest.CaptureFixture[str], arguments: list[str], beginning: str) -> None:
    assert said(capsys, *arguments).startswith(beginning)


@pytest.mark.parametrize("keys", ["", ",", " , "])
def test_no_key_where_keys_belong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    """A secret that is missing does not open the server."""
    monkeypatch.setenv("JAXL_API_KEYS", keys)
    assert said(capsys).startswith(f"JAXL_API_KEYS {keys!r}: there is no key in it")


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = said(capsys, "--port", str(port))
    assert line == f"--port {port}: address already in use; give another, or 0 for any that is free\n"


def test_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert said(capsys) == f"fastapi is missing, which serving needs; {install_command('serve')}\n"
