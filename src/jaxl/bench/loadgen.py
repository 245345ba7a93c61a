"""MLPerf Inference's load: LoadGen asks for pictures, measures, and says whether the run is valid.

LoadGen and its rules are at https://github.com/mlcommons/inference; what is asked here is its benchmark of Stable
Diffusion XL (text_to_image).
"""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxl import __version__
from jaxl.bench.report import ReportTable
from jaxl.bench.systems import PictureSettings, Scenario, System
from jaxl.errors import InputError

try:
    import mlperf_loadgen as lg
except ImportError:
    raise InputError("bench", "loadgen", "it needs mlcommons-loadgen; pip install mlcommons-loadgen") from None

LoadGenResults = dict[str, Any]
Keep = Callable[[int, Image.Image], None]

# of Stable Diffusion XL, as LoadGen's own configuration has it, and the size of its dataset and its pictures
MIN_DURATION = 600.0
MIN_QUERIES: Mapping[Scenario, int] = {"offline": 5000, "server": 100}
LATENCY = 20.0
PERCENTILE = 99.0
CAPTIONS = 5000
SIZE = "1024x1024"
FAMILY = "SDXL base"

LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json")
MARK = ":::MLLOG "
NO_PIXELS = np.empty(0, np.uint8)
_ONE_AT_A_TIME = threading.Lock()
NOT_SUBMITTED = "a submission also needs the accuracy and compliance runs, and MLCommons' review"


@dataclass(frozen=True)
class LoadGenOptions:
    """The settings of a run of LoadGen.

    scenario: "offline" asks for everything at once, "server" for one picture after another at random times.
    accuracy: ask for every caption once, in place of measuring.
    target_qps: pictures a second: how many come in the server scenario; offline, how many are expected.
    min_duration: seconds. min_queries: pictures; MLPerf's own number for the scenario if None.
    latency: seconds in which `percentile` of the server scenario's pictures must be drawn.
    """

    scenario: Scenario
    accuracy: bool = False
    target_qps: float = 1.0
    min_duration: float = MIN_DURATION
    min_queries: int | None = None
    latency: float = LATENCY
    percentile: float = PERCENTILE

    def check(self) -> None:
        """Raise InputError for what cannot be."""
        if self.scenario not in MIN_QUERIES:
            raise InputError("scenario", self.scenario, "give 'offline' or 'server'")
        for name in ("target_qps", "latency", "min_queries"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(name, value, "give more than 0")
        if not 0 <= self.min_duration < float("inf"):
            raise InputError("min_duration", self.min_duration, "give seconds, 0 or more")
        if not 0 < self.percentile < 100:
            raise InputError("percentile", self.percentile, "give a number between 0 and 100")

    @property
    def queries(self) -> int:
        """The least number of pictures."""
        return MIN_QUERIES[self.scenario] if self.min_queries is None else self.min_queries

    def settings(self) -> Any:
        """Return these settings as an object of LoadGen's."""
        settings = lg.TestSettings()
        settings.FromConfig("", "stable-diffusion-xl", self.scenario.title(), 0)  # the round's seeds, too
        settings.performance_sample_count_override = 0  # there may be fewer captions than MLPerf has
        settings.scenario = getattr(lg.TestScenario, self.scenario.title())
        settings.mode = lg.TestMode.AccuracyOnly if self.accuracy else lg.TestMode.PerformanceOnly
        settings.min_duration_ms = round(1000 * self.min_duration)
        settings.min_query_count = self.queries
        settings.offline_expected_qps = settings.server_target_qps = self.target_qps
        settings.server_target_latency_ns = round(1e9 * self.latency)
        settings.server_target_latency_percentile = self.percentile / 100
        return settings


def run(
    load: LoadGenOptions,
    system: System,
    captions: Sequence[str],
    folder: Path,
    *,
    keep: Keep | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadGenResults:
    """Put LoadGen's load on a system; its logs go to `folder`, which must have none yet.

    keep: is given each picture by its index in `captions`. progress: pictures drawn, and those there will be at least.

    Returns `images`, the number drawn, and LoadGen's results by name, with `result_validity` "VALID" or "INVALID"; an
    accuracy run has none. Raises InputError, and the first error of the system at once: LoadGen, which cannot be
    stopped, goes through the rest of its schedule in a thread then.
    """
    load.check()
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = len(captions) if load.accuracy else max(load.queries, round(load.min_duration * load.target_qps))
    test = _Test(system, captions, load.accuracy, total, keep, progress)
    threading.Thread(target=_run, args=(load, test, len(captions), folder), name="LoadGen", daemon=True).start()
    test.ended.wait()
    if test.failure is not None:
        raise test.failure
    return {"images": test.done, **read_results(folder)}


def check_folder(folder: Path) -> None:
    """Raise InputError if there are logs of LoadGen's, which it would replace."""
    for name in LOGS:
        if (folder / name).exists():
            raise InputError("output", str(folder), f"{name} of another run is in it; name another folder")


def _run(load: LoadGenOptions, test: _Test, captions: int, folder: Path) -> None:
    """Run LoadGen, of which there is one in a process."""
    logs = lg.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    try:
        with _ONE_AT_A_TIME:
            sut = lg.ConstructSUT(test.issue, lambda: None)
            qsl = lg.ConstructQSL(captions, captions, lambda indices: None, lambda indices: None)
            lg.StartTestWithLogSettings(sut, qsl, load.settings(), logs)
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
    except Exception as error:  # whoever waits for the end must hear of it
        test.failure = error
    test.ended.set()


def read_results(folder: Path) -> LoadGenResults:
    """Return what LoadGen's detailed log says of a run, by the names that it has there."""
    entries = {}
    for line in (folder / "mlperf_log_detail.txt").read_text().splitlines():
        if line.startswith(MARK):
            entry = json.loads(line.removeprefix(MARK))
            entries[entry["key"]] = entry["value"]
    return {name: value for name, value in entries.items() if name.startswith(("result_", "early_stopping_"))}


class _Test:
    """The functions that LoadGen calls. After a failure everything is answered at once, with nothing."""

    def __init__(
        self,
        system: System,
        captions: Sequence[str],
        accuracy: bool,
        total: int,
        keep: Keep | None,
        progress: Callable[[int, int], None] | None,
    ):
        self.system, self.captions, self.accuracy = system, captions, accuracy
        self.keep, self.progress = keep, progress
        self.failure: Exception | None = None
        self.ended = threading.Event()
        self.done, self._total = 0, total
        self._open: set[int] = set()  # what LoadGen waits for
        self._lock = threading.Lock()

    def issue(self, queries: Sequence[Any]) -> None:
        asked: list[tuple[int, int]] = [(query.id, query.index) for query in queries]
        with self._lock:
            self._open.update(id for id, _ in asked)
            self._total = max(self._total, len(asked))
        try:
            if self.failure is not None:
                raise self.failure
            prompts = [self.captions[index] for _, index in asked]
            self.system.draw(prompts, lambda n, image: self._drawn(*asked[n], image))
        except Exception as error:  # LoadGen, which is C++, would end the process
            self._fail(error)

    def _drawn(self, id: int, index: int, image: Image.Image | Exception) -> None:
        try:
            if isinstance(image, Exception):
                raise image
            pixels = np.ascontiguousarray(image.convert("RGB")) if self.accuracy else NO_PIXELS
            if self.keep is not None:
                self.keep(index, image)
            self._answer(id, pixels)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Wait for nothing any more, as what draws may be gone."""
        self.failure = self.failure or error
        with self._lock:
            left = list(self._open)
        for id in left:
            self._answer(id, NO_PIXELS)
        self.ended.set()

    def _answer(self, id: int, pixels: np.ndarray) -> None:
        """Tell LoadGen once that a picture is done; it copies the pixels, if any, into its log of an accuracy run."""
        with self._lock:
            if id not in self._open:
                return
            self._open.remove(id)
            self.done += 1
            if self.progress is not None and self.failure is None:
                self.progress(self.done, max(self._total, self.done))
        lg.QuerySamplesComplete([lg.QuerySampleResponse(id, pixels.ctypes.data if pixels.size else 0, pixels.nbytes)])


def report(
    load: LoadGenOptions, system: System, picture: PictureSettings, captions: Mapping[str, Any], results: LoadGenResults
) -> LoadGenResults:
    """All that there is to say of a run: its settings, LoadGen's results, and how it differs from MLPerf's rules.

    captions: `file`, None for those built in, and `number`. valid: what LoadGen says, None for accuracy runs.
    """
    validity = results.get("result_validity")
    settings = {
        **system.facts,
        "steps": picture.steps,
        "scheduler": picture.scheduler,
        "guidance_scale": picture.guidance_scale,
        "negative_prompt": picture.negative_prompt,
        "latents": f"of seed {picture.seed}, for every picture" if picture.latents is None else "given",
        "captions": captions["number"],
        "captions_file": captions["file"],
        "scenario": load.scenario,
        "mode": "accuracy" if load.accuracy else "performance",
        "target_qps": load.target_qps,
        "min_duration_s": load.min_duration,
        "min_queries": load.queries,
    }
    if load.scenario == "server":
        settings |= {"latency_bound_s": load.latency, "latency_percentile": load.percentile}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor() or platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "jaxl": __version__,
            "mlcommons-loadgen": metadata.version("mlcommons-loadgen"),
        },
        "settings": settings,
        "valid": None if validity is None else validity == "VALID",
        "not_a_submission": [*_differences(load, picture, settings), NOT_SUBMITTED],
        "results": results,
    }


def table(report: LoadGenResults) -> ReportTable:
    """The report as names and values."""
    results, settings = report["results"], report["settings"]
    rows = [[LABELS[name], _shown(name, value)] for name, value in results.items() if name in LABELS and value != ""]
    rows += [[name.replace("_", " "), _value(value)] for name, value in settings.items() if value is not None]
    rows += [[name, str(value)] for name, value in report.get("accuracy", {}).items()]
    return ReportTable("jaxl bench loadgen", ("result", results.get("result_validity", "accuracy run")), rows)


LABELS = {
    "images": "images",
    "result_samples_per_second": "images/s",
    "result_completed_samples_per_sec": "images/s, drawn",
    "result_scheduled_samples_per_sec": "images/s, asked for",
    "result_mean_latency_ns": "latency, mean, s",
    "result_50.00_percentile_latency_ns": "latency, p50, s",
    "result_90.00_percentile_latency_ns": "latency, p90, s",
    "result_99.00_percentile_latency_ns": "latency, p99, s",
    "result_invalid_reason": "why",
    "early_stopping_result": "early stopping",
}


def _shown(name: str, value: Any) -> str:
    return f"{value / 1e9:.3f}" if name.endswith("_ns") else _value(value)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def _differences(load: LoadGenOptions, picture: PictureSettings, settings: Mapping[str, Any]) -> list[str]:
    """Return the ways in which a run departs from MLPerf's rules."""
    mlperf, own = PictureSettings(), LoadGenOptions(load.scenario)
    compared = [
        ("model", settings.get("family") or settings.get("model"), FAMILY),
        ("size", settings.get("size"), SIZE),
        ("steps", picture.steps, mlperf.steps),
        ("scheduler", picture.scheduler, mlperf.scheduler),
        ("guidance scale", picture.guidance_scale, mlperf.guidance_scale),
        ("negative prompt", picture.negative_prompt, mlperf.negative_prompt),
        ("latents", "given" if picture.latents is not None else "of a seed", "given"),
        ("captions", settings["captions"], CAPTIONS),
        ("min duration", min(load.min_duration, own.min_duration), own.min_duration),
        ("min queries", min(load.queries, own.queries), own.queries),
    ]
    if load.scenario == "server":
        compared += [("latency", load.latency, own.latency), ("percentile", load.percentile, own.percentile)]
    return [f"{name} is {found}, not {wanted}" for name, found, wanted in compared if found != wanted]
