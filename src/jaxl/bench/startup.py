"""The time from a command to its first image, in whole fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from jaxl.bench.workload import PROMPT, Spread, Workload
from jaxl.errors import InputError, JaxlError


@dataclass(frozen=True)
class Startup:
    """Seconds of a whole `jaxl generate`, with an empty and with a filled cache of programs.

    It runs on as many devices as it chooses: all, but no more than there are images.
    """

    cold_s: Spread
    warm_s: Spread


def measure_startup(model: str, workload: Workload, dtype: str, runs: int, tick: Callable[[], None]) -> Startup:
    """Run the command cold and warm in turns. No device may be in use, as a TPU serves one process at a time."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="jaxl-bench-") as folder:
            for measured in seconds.values():
                tick()
                measured.append(_generate(model, workload, dtype, folder))
    return Startup(Spread.of(seconds["cold"]), Spread.of(seconds["warm"]))


def count_devices() -> int:
    """Return how many devices jax finds, without using any of them afterwards."""
    return json.loads(_run("devices", "--json").splitlines()[-1])["count"]


def _generate(model: str, workload: Workload, dtype: str, folder: str) -> float:
    options = {
        "model": model,
        "size": workload.size,
        "count": workload.images,
        "steps": workload.steps,
        "scheduler": workload.scheduler,
        "guidance": workload.guidance_scale,
        "dtype": dtype,
        "output": folder,
    }
    began = time.perf_counter()
    _run("generate", PROMPT, "--quiet", *(f"--{name}={value}" for name, value in options.items()), cache=folder)
    return time.perf_counter() - began


def _run(*arguments: str, cache: str | None = None) -> str:
    """Return what a command of jaxl prints, with its programs in `cache` if that is given."""
    environment = dict(os.environ)
    if cache is not None:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        environment["JAXL_CACHE_DIR"] = os.path.join(cache, "programs")
    done = subprocess.run(
        [sys.executable, "-m", "jaxl", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return done.stdout
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    said = last.removeprefix("jaxl: error: ")
    if done.returncode == 2:
        raise InputError("startup", arguments[0], f"jaxl {arguments[0]} says: {said}")
    raise JaxlError(f"a fresh process of jaxl {arguments[0]} failed: {said}")
