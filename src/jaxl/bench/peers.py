"""Other programs that do the same work, each in a process of its own, so that memory and threads are its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from types import TracebackType
from typing import Any

from jaxl.bench.workload import Stages, Workload
from jaxl.diffusion.schedulers import USUAL_SOLVERS
from jaxl.errors import InputError, JaxlError, nearest

# of stable-diffusion.cpp's program: the variable that names it, its names on PATH, and the schedulers it has, of which
# some call the network twice in each step but the last
SD_CPP, SD_CPP_PROGRAMS = "SD_CPP", ("sd-cli", "sd")
SD_CPP_TWO_CALLS = ("dpm++2s_a", "dpm2", "heun")
SD_CPP_SCHEDULERS = ("dpm++2m", "er_sde", "euler", "euler_a", "ipndm", "lcm", "res_multistep", "tcd", *SD_CPP_TWO_CALLS)

AUTO = "auto"
PEER_DTYPES = ("float32", "bfloat16", "float16")
DIFFUSERS = ("torch", "diffusers", "transformers")

# the class of diffusers that runs a scheduler as it comes
DIFFUSERS_SCHEDULERS = {solver: kind for kind, solver in USUAL_SOLVERS.items()}


def read_peer(text: str) -> tuple[str, str | None]:
    """Return the name and the dtype, if one is given, of `NAME[:DTYPE]`. Raises InputError if it is not installed."""
    name, colon, dtype = text.partition(":")
    if name not in PEERS:
        raise InputError("peer", text, nearest(name, PEERS))
    if colon and dtype not in PEER_DTYPES:
        raise InputError("peer", text, nearest(dtype, PEER_DTYPES))
    missing = PEERS[name].missing()
    if missing is not None:
        raise InputError("peer", text, f"not installed here: {missing}")
    return name, dtype or PEERS[name].dtype


def check_workload(name: str, platform: str, scheduler: str) -> None:
    """Raise InputError unless the peer runs on the platform, and has the scheduler of this full name."""
    kind = PEERS[name]
    if platform not in kind.platforms:
        raise InputError("peer", name, f"it does not run on {platform}")
    if kind.schedulers is not None and scheduler not in kind.schedulers:
        raise InputError("scheduler", scheduler, f"beside {name}, {nearest(scheduler, kind.schedulers)}")


def find_sd_cpp() -> str | None:
    """The program of stable-diffusion.cpp: $SD_CPP, else the first of its names on PATH."""
    names = (os.environ[SD_CPP],) if os.environ.get(SD_CPP) else SD_CPP_PROGRAMS
    return next(filter(None, map(shutil.which, names)), None)


@dataclass(frozen=True)
class Opening:
    """The model that a peer opens: a folder in diffusers' layout or a hub id, on "cpu" or "cuda".

    `name` is what the user calls it, such as "diffusers:bfloat16". Dtypes are names, or AUTO: what the peer chooses.
    `scratch` is a folder that it may write to, and that `Peer` gives it.
    """

    name: str
    peer: str
    model: str
    dtype: str
    vae_dtype: str
    device: str
    scratch: str = ""


class Peer:
    """A peer's process, which answers each line of JSON on its standard input with one on its standard output.

    `facts` are what it tells of itself: its dtypes, versions, device and threads. Raises JaxlError if it fails.
    """

    def __init__(self, opening: Opening):
        self.name = opening.name
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        self._scratch = tempfile.TemporaryDirectory(prefix="jaxl-bench-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxl.bench.peer_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )
        try:
            dtypes = {"dtype": opening.dtype, "vae_dtype": opening.vae_dtype}
            self.facts = dtypes | self._ask({"open": asdict(replace(opening, scratch=self._scratch.name))})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def run(self, workload: Workload) -> Stages:
        return Stages(**self._ask({"run": asdict(workload)}))

    @property
    def pid(self) -> int:
        return self._process.pid

    def peak_memory(self) -> int:
        """The most bytes it had on the device, or of memory, at a time."""
        return self._ask({"peak": None})["bytes"]

    def close(self) -> None:
        """End the process; it holds nothing worth saving."""
        self._process.kill()
        self._process.communicate()
        self._messages.close()
        self._scratch.cleanup()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise JaxlError(f"peer {self.name}: {self._last_message()}") from error
        if "error" in answer:
            raise JaxlError(f"peer {self.name}: {answer['error']}")
        return answer

    def _last_message(self) -> str:
        self._process.wait()
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with status {self._process.returncode}"


def _without(*packages: str) -> str | None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"pip install {' '.join(missing)}" if missing else None


def _without_compiler() -> str | None:
    compiler = os.environ.get("CXX") or "g++"
    return _without(*DIFFUSERS) or (
        None if shutil.which(compiler) or shutil.which("clang++") else "torch.compile needs a C++ compiler, such as g++"
    )


def _without_flax() -> str | None:
    """Flax code went from diffusers in 0.40; PyTorch reads the weights."""
    version = metadata.version("diffusers") if importlib.util.find_spec("diffusers") else None
    old = version is not None and tuple(map(int, version.split(".")[:2])) < (0, 40)
    if old and importlib.util.find_spec("flax") and importlib.util.find_spec("torch"):
        return None
    return f'pip install "diffusers==0.39.*" flax torch; diffusers is {version or "not there"}'


def _without_sd_cpp() -> str | None:
    if find_sd_cpp() is not None:
        return None
    return f"put {SD_CPP_PROGRAMS[0]} on PATH, or name it in the environment as {SD_CPP}"


@dataclass(frozen=True)
class PeerKind:
    """What a peer is: `missing()` says how to install it, or None; without `schedulers` it knows of none.

    `dtype` is what it runs in where the user names none; None is jaxl's.
    """

    missing: Callable[[], str | None]
    schedulers: tuple[str, ...] | None = tuple(DIFFUSERS_SCHEDULERS)
    platforms: tuple[str, ...] = ("cpu", "gpu")
    dtype: str | None = None


PEERS: Mapping[str, PeerKind] = {
    "diffusers": PeerKind(partial(_without, *DIFFUSERS)),
    "torch-compile": PeerKind(_without_compiler),
    "openvino": PeerKind(partial(_without, "openvino", *DIFFUSERS), platforms=("cpu",), dtype=AUTO),
    "flax": PeerKind(_without_flax, schedulers=None, platforms=("cpu", "gpu", "tpu")),
    "stable-diffusion.cpp": PeerKind(_without_sd_cpp, SD_CPP_SCHEDULERS),
}
