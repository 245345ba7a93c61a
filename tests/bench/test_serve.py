"""Load on servers whose engine draws without a model: what is asked, what is counted, and what is noticed."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from jaxl.bench import serve
from jaxl.bench.load import Answer, Arrival, Load, arrivals, measure, measure_capacity, summarise
from jaxl.engine import Engine
from jaxl.engine.backend import Served
from jaxl.engine.fake import FakeBackend, FakeDrawing
from jaxl.errors import InputError, JaxlError
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings

SETTINGS = Settings(sizes=((32, 32),))
LOAD = Load("", rate=40, seconds=1.5, steps=(4, 8), variety=20)


@contextmanager
def server(backend: FakeBackend, *, max_waiting: int = 64, settings: Settings = SETTINGS) -> Iterator[str]:
    """The address of a server in a thread."""
    with Engine(backend, max_waiting=max_waiting) as engine, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(Service(engine, settings))
        running = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.002)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(600)


def test_arrivals() -> None:
    load = Load("", rate=5.0, seconds=1000.0, steps=(10, 30), cancel_share=0.1, malformed_share=0.05, stream_share=0.5)
    planned = arrivals(load)
    assert planned == arrivals(load)
    assert planned != arrivals(replace(load, seed=1))
    gaps = [later.at - earlier.at for earlier, later in pairwise(planned)]
    assert min(gaps) > 0
    assert planned[-1].at < load.seconds
    # each of these is off by more than four standard deviations once in ten thousand seeds
    assert len(planned) == pytest.approx(5_000, abs=280)
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.027)
    kinds = Counter(arrival.kind for arrival in planned)
    assert kinds["cancel"] / len(planned) == pytest.approx(0.1, abs=0.017)
    assert kinds["malformed"] / len(planned) == pytest.approx(0.05, abs=0.0125)
    assert kinds["stream"] / len(planned) == pytest.approx(0.5, abs=0.028)
    assert {arrival.steps for arrival in planned} == {10, 30}
    assert len(arrivals(replace(load, images=4))) == pytest.approx(1_250, abs=141)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.0}, "^rate=0.0: "),
        ({"rate": float("nan")}, "^rate=nan: "),
        ({"seconds": -1.0}, "^seconds=-1.0: "),
        ({"images": 0}, "^images=0: "),
        ({"deadline": 0.0}, "^deadline=0.0: "),
        ({"steps": ()}, "^steps="),
        ({"steps": (0, 5)}, "^steps="),
        ({"cancel_share": 1.5}, "^cancel_share=1.5: "),
        ({"cancel_share": 0.6, "malformed_share": 0.6}, "more than 1 together"),
        ({"rate": 1e-9}, "^rate=1e-09: no request comes in"),
    ],
)
def test_loads_that_cannot_be(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(replace(LOAD, **change))


def test_a_summary() -> None:
    """Of a load of two images a request, of which three quarters of its eight seconds count for rates."""
    load = Load("", rate=1.0, seconds=8.0, images=2, deadline=2.0)
    answers = [
        Answer(Arrival(1.0, 0, 10), "200", 1.0, 2.0),  # before the rates begin
        Answer(Arrival(2.5, 0, 10), "200", 2.75, 3.5),  # was sent late, which its latency includes
        Answer(Arrival(3.0, 0, 20, "stream"), "200", 3.0, 6.0, first_preview=4.0),  # too late for its deadline
        Answer(Arrival(7.5, 0, 10), "200", 7.5, 8.5),  # ends when the rates have ended
        Answer(Arrival(4.0, 0, 10), "429", 4.0, 4.25),
        Answer(Arrival(4.0, 0, 10), "500", 4.0, 4.5),
        Answer(Arrival(5.0, 0, 10, "cancel"), "cancelled", 5.0, 5.5),
        Answer(Arrival(5.0, 0, 10, "malformed"), "400", 5.0, 5.0),
        Answer(Arrival(5.0, 0, 10, "malformed"), "500", 5.0, 5.0),
        Answer(Arrival(5.0, 0, 10, "malformed"), "200", 5.0, 5.0),
    ]
    report = summarise(load, answers, lone_s={10: 0.5, 20: 1.0})
    assert report.offered == pytest.approx(5 * 2 / 6)
    assert report.achieved == pytest.approx(2 * 2 / 6)
    assert report.goodput == pytest.approx(1 * 2 / 6)
    assert report.latency_s is not None
    assert report.latency_s.mean == pytest.approx((1 + 1 + 3 + 1) / 4)
    assert (report.latency_s.p50, report.latency_s.max) == (1.0, 3.0)
    assert report.slowdown is not None
    assert (report.slowdown.p50, report.slowdown.max) == (2.0, 3.0)
    assert report.first_preview_s is not None
    assert report.first_preview_s.mean == 1.0
    assert report.refusal_s is not None
    assert report.refusal_s.max == 0.25
    assert report.statuses == {"200": 5, "400": 1, "429": 1, "500": 2, "cancelled": 1}
    assert report.unexpected == 3
    assert report.requests == 10
    assert report.lag_s == 0.25
    nothing = summarise(load, answers[4:6], lone_s={10: 0.5})
    assert nothing.latency_s is nothing.slowdown is nothing.first_preview_s is None
    assert nothing.achieved == 0


def test_a_load_of_every_kind() -> None:
    settings, backend = replace(SETTINGS, api_keys=("a secret", "another")), FakeBackend(row_seconds=0.005, places=8)
    backend.served = Served("tiny", "tiny"), Served("ink", "ink.safetensors")
    load = replace(LOAD, models=("tiny", "ink"), api_keys=settings.api_keys, deadline=60.0)
    load = replace(load, stream_share=0.3, cancel_share=0.2, malformed_share=0.2)
    with server(backend, settings=settings) as url:
        report = measure(replace(load, url=url), check=10)
    assert {(arrival.model, arrival.key) for arrival in arrivals(load)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    planned = Counter(arrival.kind for arrival in arrivals(load))
    assert report.unexpected == 0, report.statuses
    assert report.requests == planned.total()
    assert report.statuses["cancelled"] > 0
    assert report.statuses["200"] + report.statuses["cancelled"] == planned.total() - planned["malformed"]
    assert report.checked_images >= 10
    assert report.wrong_images == 0
    assert report.first_preview_s is not None
    assert report.latency_s is not None
    assert report.first_preview_s.mean < report.latency_s.max
    assert report.lone_s[4] < report.lone_s[8]
    assert 0 < report.utilisation <= 1
    assert report.goodput == report.achieved > 0
    assert report.refusal_s is None
    assert "a secret" not in repr(load)


def test_an_overload() -> None:
    with server(FakeBackend(row_seconds=0.02, places=1), max_waiting=2) as url:
        report = measure(replace(LOAD, url=url, steps=(5,)))
    assert report.statuses["429"] > report.statuses["200"] > 0
    assert report.unexpected == 0
    assert report.achieved < report.offered / 2
    assert report.utilisation > 0.5


class Forgetful(FakeBackend):
    """Draws something else every time."""

    drawn = 0

    def read(self, arguments: Mapping[str, Any]) -> list[FakeDrawing]:
        self.drawn += 1
        return [replace(drawing, settings=f"{self.drawn}") for drawing in super().read(arguments)]


def test_wrong_images_are_noticed() -> None:
    with server(Forgetful()) as url:
        report = measure(replace(LOAD, url=url, seconds=0.5), check=3)
    assert report.checked_images >= 3
    assert report.wrong_images == report.checked_images


def test_a_capacity() -> None:
    with server(FakeBackend(row_seconds=0.01, places=4)) as url:
        found = measure_capacity(replace(LOAD, url=url, steps=(5,), images=2), in_flight=8)
    assert 0 < found <= 4 / (5 * 0.01) * 1.1  # a batch may end right before the time that counts begins


def test_what_is_no_server_of_jaxl() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"^url='{url}': no server answers there"):
            measure(replace(LOAD, url=url))
    for url in ("localhost", "ftp://localhost"):
        with pytest.raises(InputError, match=f"^url='{url}': no server answers there"):
            measure_capacity(replace(LOAD, url=url), 8)
    with server(FakeBackend()) as url, pytest.raises(InputError, match="no metrics of jaxl at /metrics"):
        measure(replace(LOAD, url=f"{url}/v1"))


def test_a_server_that_refuses() -> None:
    with server(FakeBackend(), settings=replace(SETTINGS, api_keys=("a secret",))) as url:
        with pytest.raises(JaxlError, match=r"with 401 that should give images: .*key"):
            measure(replace(LOAD, url=url))
        with pytest.raises(JaxlError, match="with 400 that should give images: size=1024: this server draws"):
            measure(replace(LOAD, url=url, size="1024x1024", api_keys=("a secret",)))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of `jaxl serve`; it writes its options to a file, which is returned."""
    program, written = tmp_path / "serve.py", tmp_path / "options"
    program.write_text(f"""
import socket, sys, uvicorn
from jaxl.engine import Engine
from jaxl.engine.backend import Served
from jaxl.engine.fake import FakeBackend
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings

open({str(written)!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if "--model" in sys.argv:
    print("a warning\\njaxl: error: model='none': there is none", file=sys.stderr)
    sys.exit(2)
if "--broken" in sys.argv:
    sys.exit(1)
if "--late" in sys.argv:
    print('{{"level": "error", "message": "the model is broken"}}', file=sys.stderr)
    sys.exit(1)
listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{{listener.getsockname()[1]}}", flush=True)
with Engine(FakeBackend(row_seconds=0.005), joins="--static" not in sys.argv) as engine:
    app = create_app(Service(engine, Settings(sizes=((32, 32),))))
    uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off")).run(sockets=[listener])
""")
    monkeypatch.setattr(serve, "COMMAND", (sys.executable, str(program)))
    return written


def test_joining_beside_static(tmp_path: Path, command: Path) -> None:
    told: list[str] = []
    # so many that some come in this time however slow the machine is
    load: dict[str, Any] = {"shares": (1.0, 2.0), "seconds": 0.8, "steps": (4, 16), "api_keys": ("a secret",)}
    results = serve.run(options=["--slots", "4"], **load, tell=told.append)
    assert command.read_text().splitlines() == ["--slots 4", "--slots 4 --static"]
    assert [line.partition(":")[0] for line in told] == ["joining"] * 4 + ["static"] * 3
    assert json.loads(json.dumps(results))["load"]["steps"] == [4, 16]
    assert "a secret" not in json.dumps(results)
    assert list(results["servers"]) == ["joining", "static"]
    for reports in results["servers"].values():
        assert [report["rate"] for report in reports] == [share * results["capacity"] for share in (1.0, 2.0)]
        assert all(report["unexpected"] == 0 for report in reports)
    joining, static = results["servers"].values()
    assert [report["requests"] for report in joining] == [report["requests"] for report in static]

    table = serve.table(results)
    assert [row[0] for row in table.rows] == ["joining", "joining", "static", "static"]
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert serve.write_plots(tmp_path, results) == ["serve_latency.png", "serve_throughput.png"]
    for name in ("serve_latency.png", "serve_throughput.png"):
        with Image.open(tmp_path / name) as plot:
            assert len(plot.convert("RGB").getcolors(2**20) or []) > 3


def test_a_server_that_runs_already(tmp_path: Path) -> None:
    with server(FakeBackend()) as url:
        results = serve.run(url=url, rates=(30.0,), seconds=0.5, deadline=1.0)
    assert list(results["servers"]) == ["server"]
    assert results["capacity"] is None
    assert serve.table(results).rows[0][3] != "-"
    assert serve.write_plots(tmp_path, results)
    for name in ("rates", "shares"):
        with pytest.raises(InputError, match=rf"^{name}=\(-1.0,\): "):
            serve.run(url=url, **{name: (-1.0,)})


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("--model", InputError, "^serve='--model': jaxl serve says: model='none': there is none$"),
        ("--broken", JaxlError, "^jaxl serve says: exit status 1$"),
        ("--late", JaxlError, "^jaxl serve says: the model is broken$"),
    ],
)
@pytest.mark.usefixtures("command")
def test_a_server_that_does_not_start(option: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), serve.serving([option]):
        pass


def test_a_client_needs_no_jax() -> None:
    code = "import sys, jaxl.bench.serve; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
