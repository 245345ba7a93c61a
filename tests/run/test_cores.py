"""The devices of a CPU: two that read one memory, and a spare one for a server."""

import os
from typing import Any

import forks
from xla_flags import xla_flags


def test_two_devices_of_a_cpu() -> None:
    """The default is two devices that read the same memory; who has started jax, or said how many, is left alone."""
    code = """
import sys, jax
given = sys.stdin.read()
if given == "started": jax.devices()
if given == "said": jax.config.update("jax_num_cpu_devices", 3)
import jaxl
pipe, params = jaxl.from_pretrained("tiny")
shards = params["unet"]["conv_in"]["weight"].addressable_shards
print(pipe.mesh.size, len({shard.data.unsafe_buffer_pointer() for shard in shards}))
"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}

    def run(argument: str) -> str:
        done = forks.run(code, argument, environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    cores = len(os.sched_getaffinity(0))
    assert run("nothing") == f"{min(2, cores)} 1"
    assert run("started") == "1 1"
    assert run("said") == "3 1"


def test_a_spare_device_is_in_no_mesh(small: Any) -> None:
    """What `jaxl serve` decodes on; also when a model is opened again."""
    code = """
import sys, jax
from jaxl.backend import open_backend
model = sys.stdin.read()
for _ in range(2):
    backend = open_backend(model, sizes=[(64, 64)], slots=2, chunks=1, load=False)
    assert jax.devices()[-1] not in backend.pipe.mesh.devices
    assert backend.pipe.mesh.size == len(jax.devices()) - 1
backend.load()
drawing, = backend.read({"prompt": "a", "steps": 1, "width": 64, "height": 64})
batch = backend.batch(drawing.stages[0].lane, 2)
batch.join(0, drawing, 0, None)
batch.advance(1)
assert backend.finish(drawing, batch.take(0))().size == (64, 64)
"""
    done = forks.run(code, str(small[0].checkpoint.source), {**os.environ, "XLA_FLAGS": xla_flags()})
    assert done.returncode == 0, done.stderr
