"""The whole suite runs on eight CPU devices, so that sharding is exercised wherever it applies."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ["HF_HUB_OFFLINE"] = "1"
# the suite runs in two processes on two cores, where PyTorch's threads would wait for each other most of the time
os.environ.setdefault("OMP_NUM_THREADS", "1")
# most programs of tests compile for longer than they run; without LLVM's optimisations that takes half the time
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# programs that several tests compile, here or in processes of their own, are compiled once, but never taken from an
# earlier run; xdist's workers are given the folder of the process that starts them
OWN_FOLDER = None if "JAXL_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="jaxl-programs-")
if OWN_FOLDER:
    os.environ["JAXL_CACHE_DIR"] = OWN_FOLDER

import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxl.run.disk_cache import enable_disk_cache
from jaxl.server.ray.local import AS_RAY_IS_IMPORTED

# several folders' tests import Ray, whichever are collected
os.environ.update(AS_RAY_IS_IMPORTED)

enable_disk_cache()


@pytest.fixture(scope="session", autouse=True)
def _programs_are_kept() -> None:
    """Whatever tests do: jax opens the folder at its first program, and after `jaxl bench`, which measures without it,
    it would not."""
    jnp.zeros(())


def pytest_unconfigure() -> None:
    if OWN_FOLDER:
        shutil.rmtree(OWN_FOLDER, ignore_errors=True)


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Programs are compiled as users have them: for tests whose numbers depend on it."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


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
