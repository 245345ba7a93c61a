"""LoadGen's short runs, on an engine that draws without a model, on a small random model, and over HTTP."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import numpy as np
import pytest
import uvicorn
from PIL import Image

from jaxl.bench.captions import CAPTIONS, read_captions, read_latents
from jaxl.bench.loadgen import LOGS, LoadGenOptions, report, run, table
from jaxl.bench.systems import EngineSystem, PictureSettings, PipelineSystem, open_http_system
from jaxl.cli.app import run as jaxl
from jaxl.engine import Engine
from jaxl.engine.fake import FakeBackend, FakeDrawing
from jaxl.errors import InputError, JaxlError
from jaxl.server.app import create_app
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.weights.store import write_safetensors

SERVER = LoadGenOptions("server", target_qps=900, min_duration=0.6)
OFFLINE = LoadGenOptions("offline", target_qps=100, min_duration=0.0, min_queries=40)
FACTS = {"number": len(CAPTIONS), "file": None}


class Watched(FakeBackend):
    """Remembers what it was asked for."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.asked: list[Mapping[str, Any]] = []

    def read(self, arguments: Mapping[str, Any]) -> list[FakeDrawing]:
        self.asked.append(arguments)
        return super().read(arguments)


@contextmanager
def engine_system(backend: FakeBackend, picture: PictureSettings = PictureSettings()) -> Iterator[EngineSystem]:  # noqa: B008
    with Engine(backend, max_waiting=2**31) as engine:
        yield EngineSystem(engine, picture, {"model": "fake", "size": "32x32"})


@contextmanager
def served(backend: FakeBackend, *, max_waiting: int = 10_000, settings: Settings | None = None) -> Iterator[str]:
    """The address of a server in a thread."""
    settings = settings or Settings(sizes=((32, 32),), schedulers=("euler",), max_images=1)
    with Engine(backend, max_waiting=max_waiting) as engine, socket.create_server(("127.0.0.1", 0)) as listener:
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


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_the_defaults_are_those_that_loadgen_has_for_sdxl(scenario: Any) -> None:
    mlperf = lg.TestSettings()
    assert mlperf.FromConfig("", "stable-diffusion-xl", scenario.title(), 0) == 0
    own = LoadGenOptions(scenario).settings()
    names = ["min_duration_ms", "min_query_count", "qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"]
    names += ["server_target_latency_ns", "server_target_latency_percentile", "server_target_qps"]
    assert {name: getattr(own, name) for name in names} == {name: getattr(mlperf, name) for name in names}
    assert mlperf.qsl_rng_seed != 0


def test_a_server_scenario_in_process(tmp_path: Path) -> None:
    backend, shown = Watched(places=64), []
    with engine_system(backend) as system:
        results = run(SERVER, system, CAPTIONS, tmp_path / "new", progress=lambda *each: shown.append(each))
        said = report(SERVER, system, PictureSettings(), FACTS, results)
    assert results["result_validity"] == "VALID"
    assert results["early_stopping_met"]
    assert results["images"] == results["result_query_count"] == len(backend.asked) >= 459
    assert results["result_overlatency_query_count"] == 0
    assert shown[-1][0] == results["images"]
    assert all((tmp_path / "new" / name).is_file() for name in LOGS)
    asked = backend.asked[0]
    assert asked["prompt"] in CAPTIONS
    assert (asked["steps"], asked["scheduler"], asked["guidance_scale"]) == (20, "euler", 8.0)
    assert asked["negative_prompt"] == "normal quality, low quality, worst quality, low res, blurry, nsfw, nude"
    assert {each["seed"] for each in backend.asked} == {0}
    assert said["valid"] is True
    assert json.loads(json.dumps(said))["settings"]["latency_bound_s"] == 20.0
    assert any("min duration is 0.6, not 600.0" in line for line in said["not_a_submission"])
    rows = dict(table(said).rows)
    assert rows["images"] == str(results["images"])
    assert table(said).header == ("result", "VALID")


def test_what_is_too_slow_is_invalid(tmp_path: Path) -> None:
    load = replace(SERVER, target_qps=100, min_duration=0.1, min_queries=10, latency=0.02)
    with engine_system(FakeBackend(row_seconds=0.01, places=1)) as system:
        results = run(load, system, CAPTIONS, tmp_path)
    assert results["result_validity"] == "INVALID"
    assert not results["result_perf_constraints_met"]
    assert results["result_overlatency_query_count"] > 0


@pytest.mark.parametrize("load", [SERVER, OFFLINE], ids=["server", "offline"])
def test_over_http(load: LoadGenOptions, tmp_path: Path) -> None:
    load = replace(load, target_qps=min(load.target_qps, 150), percentile=90)
    backend = Watched(places=64)
    with served(backend) as url, open_http_system(url, PictureSettings(), load.scenario, None) as system:
        results = run(load, system, CAPTIONS, tmp_path)
        assert results["result_validity"] == "VALID", results
        assert results["images"] == len(backend.asked) - 1  # the first is the warm-up
        assert system.facts == {
            "drawn_by": "HTTP",
            "url": url,
            "in_flight": 32 if load.scenario == "offline" else None,
            "model": "tiny",
            "size": "32x32",
        }
    assert {each["seed"] for each in backend.asked} == {0}
    assert {each["guidance_scale"] for each in backend.asked} == {8.0}
    assert {each["prompt"] for each in backend.asked} <= {*CAPTIONS, "a warm-up"}


def test_offline_runs_and_accuracy_runs_of_a_model(small: tuple[Any, Any], tmp_path: Path) -> None:
    """All pictures of an accuracy run are those that the pipeline draws, and LoadGen's log has their pixels."""
    pipe, params = small
    noise = np.random.default_rng(3).standard_normal((1, 8, 8, 4), np.float32)
    picture = PictureSettings(steps=2, latents=noise)
    captions = ["a red apple", "a (green) castle", "a llama", "a rocket", "a blue guitar"]
    kept: dict[int, Image.Image] = {}
    with ThreadPoolExecutor(1) as worker:
        system = PipelineSystem(pipe, params, picture, 2, worker)
        load = LoadGenOptions("offline", target_qps=10, min_duration=0.0, min_queries=7)
        results = run(load, system, captions, tmp_path / "speed")
        assert results["result_validity"] == "VALID"
        assert results["images"] == 7
        assert report(load, system, picture, FACTS, results)["settings"]["size"] == "64x64"

        found = run(replace(load, accuracy=True), system, captions, tmp_path / "accuracy", keep=kept.__setitem__)
    assert found == {"images": 5}
    assert sorted(kept) == [0, 1, 2, 3, 4]
    wanted = pipe.generate(
        params,
        captions[:2],
        negative_prompt=picture.negative_prompt,
        guidance_scale=8,
        steps=2,
        scheduler="euler",
        latents=noise.repeat(2, axis=0),
        prompt_syntax="plain",
    ).images
    assert [kept[i].tobytes() for i in range(2)] == [image.tobytes() for image in wanted]
    assert len({image.tobytes() for image in kept.values()}) == 5
    log = {each["qsl_idx"]: each["data"] for each in json.loads((tmp_path / "accuracy" / LOGS[2]).read_text())}
    assert {index: bytes.fromhex(data) for index, data in log.items()} == {i: kept[i].tobytes() for i in kept}


class Broken:
    """A system that fails at some picture."""

    def __init__(self, at: int):
        self.at, self.facts, self.drawn = at, {}, 0

    def draw(self, prompts: Sequence[str], drawn: Any) -> None:
        self.drawn += len(prompts)
        if self.at == 0:
            raise JaxlError("it is broken")
        for index in range(len(prompts)):
            drawn(index, JaxlError("it broke") if self.drawn > self.at else Image.new("RGB", (4, 4)))


def test_failures_end_a_run_at_once(tmp_path: Path) -> None:
    began, seconds = time.monotonic(), 3.0
    for number, (at, message) in enumerate(((0, "it is broken"), (3, "it broke"))):
        load = LoadGenOptions("server", target_qps=100, min_duration=seconds, min_queries=1)
        with pytest.raises(JaxlError, match=message):
            run(load, Broken(at), CAPTIONS, tmp_path / str(number))
    # the second waits for LoadGen's end of the first, and says so at its fourth picture
    assert time.monotonic() - began < 2 * seconds
    with pytest.raises(JaxlError, match="it broke"):
        run(OFFLINE, Broken(3), CAPTIONS, tmp_path / "offline")


def test_servers_that_refuse(tmp_path: Path) -> None:
    load = LoadGenOptions("server", target_qps=300, min_duration=0.3, min_queries=1)
    with served(FakeBackend(row_seconds=0.02, places=1), max_waiting=1) as url:
        with (
            open_http_system(url, PictureSettings(steps=1), "server", None) as system,
            pytest.raises(JaxlError, match="the server answers with 429: "),
        ):
            run(load, system, CAPTIONS, tmp_path)
        with (
            pytest.raises(JaxlError, match="with 400: size=48: this server draws 32x32"),
            open_http_system(url, PictureSettings(size=(48, 32)), "offline", None),
        ):
            pass
    for gone in (url, "localhost", "ftp://localhost"):
        with (
            pytest.raises(InputError, match=rf"^url='{gone}': no server answers there"),
            open_http_system(gone, PictureSettings(), "offline", None),
        ):
            pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_qps": 0.0}, "^target_qps=0.0: "),
        ({"min_duration": -1.0}, "^min_duration=-1.0: "),
        ({"min_duration": float("nan")}, "^min_duration=nan: "),
        ({"min_queries": 0}, "^min_queries=0: "),
        ({"latency": float("inf")}, "^latency=inf: "),
        ({"percentile": 100.0}, "^percentile=100.0: "),
        ({"scenario": "Offline"}, "^scenario='Offline': "),
    ],
)
def test_loads_that_cannot_be(change: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(replace(OFFLINE, **change), Broken(0), CAPTIONS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_logs_of_other_runs_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / LOGS[0]).write_text("VALID")
    with pytest.raises(InputError, match="of another run is in it; name another folder"):
        run(OFFLINE, Broken(0), CAPTIONS, tmp_path)


def test_captions_are_taken_literally() -> None:
    written = PictureSettings().body("a (cat:1.5) AND \\")
    assert (written["prompt"], written["prompt_syntax"]) == ("a (cat:1.5) AND \\", "plain")
    assert PictureSettings(size=(64, 32)).body("a")["size"] == "64x32"


def test_reading_captions(tmp_path: Path) -> None:
    files = {
        "a.tsv": 'id\timage_id\tcaption\n1\t2\tA city at night \n3\t4\tTwo  "giraffes"\n',
        "a.txt": 'A city at night\n\nTwo "giraffes"\n',
        "a.json": '["A city at night", {"caption": "Two\\n\\"giraffes\\""}]',
        "b.json": '{"annotations": [{"caption": "A city at night"}, {"caption": "Two \\"giraffes\\""}]}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert read_captions(tmp_path / name) == ["A city at night", 'Two "giraffes"'], name
    bad = {
        "c.tsv": "id\ttext\n1\ta\n",
        "c.json": '[{"text": 1}]',
        "d.json": "{",
        "e.json": "5",
        "c.csv": "a",
        "c.txt": " ",
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"^captions="):
            read_captions(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_captions(tmp_path / "none.txt")
    assert len(set(CAPTIONS)) == 120


def test_reading_latents(tmp_path: Path) -> None:
    array = np.arange(4 * 2 * 3, dtype=np.float32).reshape(1, 4, 2, 3)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array[0].astype(np.float16))
    write_safetensors(tmp_path / "c.safetensors", {"latents": (array.dtype, array.shape)}, lambda _: array)
    for name in ("a.npy", "b.npy", "c.safetensors"):
        found = read_latents(tmp_path / name)
        assert found.shape == (1, 2, 3, 4)
        assert found.dtype == np.float32
        assert found[0, 1, 2, 3] == array[0, 3, 1, 2]
    np.save(tmp_path / "d.npy", array.astype(int))
    np.save(tmp_path / "e.npy", np.zeros((2, 4, 2, 3), np.float32))
    np.save(tmp_path / "f.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "g.npy").write_bytes(b"nothing")
    (tmp_path / "h.safetensors").write_bytes(b"nothing")
    (tmp_path / "latents.pt").write_bytes(b"PK")
    for name in ("d.npy", "e.npy", "f.npy", "g.npy", "h.safetensors", "latents.pt", "none.npy"):
        with pytest.raises(InputError, match=r"^latents="):
            read_latents(tmp_path / name)
    with pytest.raises(InputError, match="nothing here reads pickles"):
        read_latents(tmp_path / "latents.pt")


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--min-duration", "0", "--min-queries", "20", "--target-qps", "100"]
    with served(Watched(places=64)) as url:
        assert jaxl(["bench", "loadgen", "--url", url, *few, "--steps", "3", "--json"]) == 0
        out, err = capfd.readouterr()
        said = json.loads(out.splitlines()[-1])
        (folder,) = (each for each in tmp_path.iterdir() if each.name.startswith("loadgen-offline-"))
        assert json.loads((folder / "results.json").read_text()) == said
        assert said["valid"] is True
        assert said["settings"]["steps"] == 3
        assert "VALID" in out
        assert "negative prompt" in out
        assert "jaxl: not a submission: " in err
        assert "steps is 3, not 20" in err

        # faster than expected, so that it ends before its time
        command = [
            "bench",
            "loadgen",
            "--url",
            url,
            "--min-duration",
            "30",
            "--min-queries",
            "5",
            "--target-qps",
            "0.5",
        ]
        assert jaxl([*command, "--output", "short", "-q"]) == 1
        out, err = capfd.readouterr()
        assert "INVALID" in out
        assert err == (
            "jaxl: error: LoadGen says INVALID: "
            "Increase expected QPS so the loadgen pre-generates a larger (coalesced) query.\n"
        )

        assert jaxl([*command, "--output", "short"]) == 2
        assert "mlperf_log_summary.txt of another run is in it" in capfd.readouterr().err

        assert jaxl(["bench", "loadgen", "--url", url, "--accuracy", "-q", "--json", "--output", "all"]) == 0
        said = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert said["accuracy"] == {"images": 120}
        assert said["valid"] is None
        assert len(list((tmp_path / "all" / "images").glob("*.png"))) == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "http://x", "--model", "tiny"], "--model 'tiny': the server has its own; leave it out beside --url"),
        (["--url", "http://x", "--latents", "l.npy"], "--latents 'l.npy': the server has its own"),
        (["--clip-model", "clip"], "--clip-model 'clip': only pictures of --accuracy are scored; add it"),
        (["--accuracy", "--fid-stats", "x.npz"], "--inception None: the FID needs --fid-stats and --inception"),
        (["--size", "big"], "--size 'big': give WIDTHxHEIGHT"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--batch", "0"], "--batch 0: give 1 or more"),
        (["--target-qps", "0"], "--target-qps 0.0: give more than 0"),
        (["--static"], "--static True: only a model's server scenario has a running batch; add --scenario server"),
        (["--captions", "none.txt"], "--captions 'none.txt': it cannot be read"),
    ],
)
def test_bad_options(
    options: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert jaxl(["bench", "loadgen", *options]) == 2
    assert capsys.readouterr().err.startswith(f"jaxl: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_client_needs_no_jax() -> None:
    code = "import sys, jaxl.bench.loadgen, jaxl.bench.captions; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
