"""The suite runs on eight CPU devices, of which tests of sharding name those that they use; by default it is one."""

import os

from xla_flags import as_users_compile, xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
# the suite runs in two processes on two cores, where PyTorch's threads would wait for each other most of the time
os.environ.setdefault("OMP_NUM_THREADS", "1")
# most programs of tests compile for longer than they run; without LLVM's optimisations that takes half the time
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import gc
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxl.run import sharding
from jaxl.run.disk_cache import enable_disk_cache
from jaxl.server.ray.local import AS_RAY_IS_IMPORTED

# several folders' tests import Ray, whichever are collected
os.environ.update(AS_RAY_IS_IMPORTED)

# programs for eight devices compile twice as long as those for one; processes that tests start have no more, and share
# them, unless they are told otherwise
sharding._spare = len(jax.devices()) - 1  # pyright: ignore[reportPrivateUsage]
os.environ["XLA_FLAGS"] = xla_flags(1)

TESTS = Path(__file__).parent

# What `--quick` does without: what is slow to install, to import or to start; folders whose tests compile, measure or
# start servers most of the time; and fixtures with programs that take long to compile.
HEAVY = (
    *("torch", "diffusers", "transformers", "accelerate", "flax", "peft", "ray", "gradio"),
    *("c2pa", "kubernetes_validate", "matplotlib", "mlperf_loadgen", "openai", "schemathesis", "webuiapi"),
)
LONG = (
    *("bench", "benchmarks", "deploy", "kernels", "run", "training", "web", "server/ray", "server/test_serve.py"),
    *("nn/test_tiles.py", "weights/test_hub.py", "weights/test_quantise.py", "test_cli.py"),
)
COMPILED = {"tiny", "small", "optimised"}

# The files that take longest, first, so that no worker is left with one at the end.
FIRST = (
    *(
        "server/ray",
        "test_compat.py",
        "test_backend.py",
        "test_lora.py",
        "run/test_hosts.py",
        "test_cli.py",
        "weights/test_quantise.py",
    ),
    *("test_compile_command.py", "bench", "test_caching.py", "parity", "test_pipeline.py", "call", "nn"),
)


# Files that one process runs, one after another: those of Ray, on one Ray, and those that draw with the same programs.
TOGETHER = (("server/ray/",), ("test_lora.py", "server/test_lora_files.py", "residency/test_models.py"))


class LeftOut(pytest.Module):
    """A file that imports what `--quick` does without."""

    def collect(self) -> list[pytest.Item]:
        return []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need no model and none of what is heavy")


def pytest_configure(config: pytest.Config) -> None:
    # programs that several tests compile, here or in processes of their own, are compiled once, but never taken from an
    # earlier run; xdist's workers are given the folder of the process that starts them
    if "JAXL_CACHE_DIR" not in os.environ:
        os.environ["JAXL_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="jaxl-programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if config.getoption("quick"):
        # so none can be imported, here as where it is not installed
        sys.modules.update({name: None for name in HEAVY if name not in sys.modules})  # pyright: ignore[reportArgumentType]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("quick") and collection_path in {TESTS / name for name in LONG} else None


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not parent.config.getoption("quick"):
        return None
    module = pytest.Module.from_parent(parent, path=module_path)
    try:
        module.obj  # noqa: B018, it is imported
    except pytest.Collector.CollectError as error:
        missing = getattr(error.__cause__, "name", None) or ""
        if missing.split(".")[0] in HEAVY:
            return LeftOut.from_parent(parent, path=module_path)
        raise
    return module


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        left_out = [item for item in items if COMPILED.intersection(getattr(item, "fixturenames", ()))]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: _rank(item.path.relative_to(TESTS).as_posix()))


def pytest_collection_finish() -> None:
    # what was imported is not gone through again and again: Python would spend a tenth of the run on it
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _rank(path: str) -> int:
    return next((number for number, name in enumerate(FIRST) if path.startswith(name)), len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to the workers whole, in the order they have here."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((group[0] for group in TOGETHER if file.removeprefix("tests/").startswith(group)), file)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _programs_are_kept() -> None:
    """Programs go to the folder and come from it, whatever tests do.

    jax opens it at its first program, and would not after `jaxl bench`, which measures without it.
    """
    enable_disk_cache()
    jnp.zeros(())


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Programs are compiled as users have them."""
    with as_users_compile():
        yield


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, Any]:
    """The embedded model in float32 on one device: (pipe, params)."""
    import jaxl

    return jaxl.from_pretrained("tiny", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model with few layers and random weights, 64x64 pixels, in float32 on one device: (pipe, params).

    For what has to be true of any model; `pipe.checkpoint.source` is its folder.
    """
    from small_model import write_small_model

    import jaxl

    folder = tmp_path_factory.mktemp("small") / "model"
    write_small_model(folder)
    return jaxl.from_pretrained(folder, dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))


@pytest.fixture
def compilations() -> Any:
    """A context manager that yields a list which grows by one name for each program XLA compiles or reads from disk."""

    from jaxl.bench.measure import compilations

    return compilations
