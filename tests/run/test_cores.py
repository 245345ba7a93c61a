"""One image on two devices: its branches on one each, or its rows, as in the autoencoder."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from xla_flags import xla_flags

import jaxl
from jaxl.kernels import Kernels

PROMPT = "a red apple on a blue background, flat style"


def test_branches_on_two_devices(small: Any) -> None:
    """The picture of two devices is that of one, with and without guidance, in one program whatever the prompt."""
    pictures = []
    for devices, kernels in ((2, None), (1, Kernels.plain("cpu"))):
        mesh = jaxl.make_mesh(jax.devices()[:devices])
        pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype=jnp.float32, mesh=mesh, kernels=kernels)
        assert pipe.bucket(1, guided=True).batch == 1
        assert pipe.bucket(1, guided=False).batch == 1
        assert pipe.bucket(3, guided=True).batch == 3
        options = {"steps": 3, "width": 128, "height": 64, "output": "numpy", "guidance_interval": (0, 0.5)}
        pictures.append(np.asarray(pipe.generate(params, PROMPT, seed=1, **options).images))
    np.testing.assert_allclose(*pictures, atol=2e-5)


def test_two_devices_of_a_cpu() -> None:
    """The default is two devices that read the same memory; who has started jax, or said how many, is left alone."""
    code = """
import sys, jax
if sys.argv[1] == "started": jax.devices()
if sys.argv[1] == "said": jax.config.update("jax_num_cpu_devices", 3)
import jaxl
pipe, params = jaxl.from_pretrained("tiny")
shards = params["unet"]["conv_in"]["weight"].addressable_shards
print(pipe.mesh.size, len({shard.data.unsafe_buffer_pointer() for shard in shards}))
"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}

    def run(argument: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, argument], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    cores = len(os.sched_getaffinity(0))
    assert run("nothing") == f"{min(2, cores)} 1"
    assert run("started") == "1 1"
    assert run("said") == "3 1"


def test_a_spare_device_is_in_no_mesh(small: Any) -> None:
    """What `jaxl serve` decodes on; also when the model is loaded again."""
    code = """
import sys, jax
from jaxl.backend import open_backend
for _ in range(2):
    backend = open_backend(sys.argv[1], sizes=[(64, 64)], slots=2, chunks=1)
    assert jax.devices()[-1] not in backend.pipe.mesh.devices
    assert backend.pipe.mesh.size == len(jax.devices()) - 1
drawing, = backend.read({"prompt": "a", "steps": 1, "width": 64, "height": 64})
batch = backend.batch(drawing.stages[0].lane, 2)
batch.join(0, drawing, 0, None)
batch.advance(1)
assert backend.finish(drawing, batch.take(0))().size == (64, 64)
"""
    command = [sys.executable, "-c", code, small[0].checkpoint.source]
    subprocess.run(command, check=True, env={**os.environ, "XLA_FLAGS": xla_flags()})
