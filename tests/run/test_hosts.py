"""One program over two hosts: two processes of four devices each draw what one process of eight does."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from xla_flags import xla_flags

import jaxl
from jaxl.cli import bench, run
from jaxl.cli.options import Hosts
from jaxl.errors import InputError
from jaxl.run import hosts
from jaxl.run.programs import PICTURE
from jaxl.run.sharding import gathered, own_images

PROMPT = "a red apple on a blue background, flat style"
ASKED: dict[str, Any] = {"steps": 3, "seed": 7}

HOST = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
import jaxl
from jaxl.run import hosts
from jaxl.bench.measure import measure
from jaxl.bench.workload import Workload

coordinator, host, model, prompt, asked, folder = sys.argv[1:]
hosts.join(coordinator, 2, int(host))
try:
    jaxl.from_pretrained(model, shard_params=True)
except jaxl.InputError as error:
    told = [str(error)]
pipe, params = jaxl.from_pretrained(model, dtype=jnp.float32)
options = json.loads(asked)
eight = pipe.generate(params, prompt, num_images=8, **options)
three = pipe.generate(params, prompt, num_images=3, output="numpy", **options)
seen = []
def watch(step, total, latents):
    seen.append(latents.shape)
    return host == "0"
stopped = pipe.generate(params, prompt, num_images=8, callback=watch, **options)
try:
    pipe.generate(params, prompt, num_images=8, guidance_scale=[5.0] * 7 + [3e38], **options)
except jaxl.NonFiniteError as error:
    told.append(str(error))
np.savez(f"{folder}/{host}", images=np.stack(eight.images), latents=eight.latents, three=three.images)
own = jax.tree.map(lambda a: a.is_fully_replicated and len(a.addressable_shards), params)
print(json.dumps({"devices": pipe.mesh.size, "shards": sorted(set(jax.tree.leaves(own))), "seeds": eight.seeds,
    "three": three.seeds, "seen": seen, "steps": stopped.steps, "told": told}))
row = measure({8: pipe}, [Workload(8, 64, 64, 1, 3, "euler", 5.0)], warmup=1, runs=1)[0]
print(json.dumps({"images": row.images_per_s * row.latency_s.median, "compiled": row.compilations_after_warmup}))
hosts.leave()
"""


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def start(*argv: str) -> subprocess.Popen[str]:
    """A Python process of four devices."""
    # XLA gives a CPU as many threads as devices, and their number decides in which order convolutions add
    environment = {**os.environ, "XLA_FLAGS": xla_flags(4), "NPROC": "8"}
    return subprocess.Popen(
        [sys.executable, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(hosts: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What the processes print when they are done, without what the library of CPUs' collectives says."""
    try:
        outputs = [host.communicate(timeout=600) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    for host, (_, problems) in zip(hosts, outputs, strict=True):
        assert host.returncode == 0, problems
    return [output for output, _ in outputs]


def command(*argv: str) -> list[str]:
    """What `jaxl` prints on two hosts."""
    port = free_port()
    together = ("--coordinator", f"127.0.0.1:{port}", "--hosts", "2")
    return end([start("-m", "jaxl", *argv, *together, "--host", str(host)) for host in range(2)])


@pytest.fixture(scope="module")
def one_host(small: Any) -> Any:
    """A pipeline of this process alone, its parameters, and eight images."""
    kernels = replace(small[0].model.kernels, evaluations="together")  # as several have it
    pipe, params = jaxl.from_pretrained(
        small[0].checkpoint.source, dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()), kernels=kernels
    )
    assert pipe.mesh.size == 8
    return pipe, params, pipe.generate(params, PROMPT, num_images=8, **ASKED)


def test_nothing_goes_from_device_to_device(one_host: Any) -> None:
    pipe, *_ = one_host
    for program in PICTURE:
        text = pipe.programs.get(program, pipe.bucket(8)).as_text()
        assert not re.findall(r"\b(all-\w+|collective-\w+|reduce-scatter)[\w-]*\(", text), program.name


def test_two_hosts(small: Any, one_host: Any, tmp_path: Path) -> None:
    """Each has half of the images, the very ones that one host draws; what stops one of them stops both."""
    arguments = (str(small[0].checkpoint.source), PROMPT, json.dumps(ASKED), str(tmp_path))
    coordinator = f"127.0.0.1:{free_port()}"
    outputs = end([start("-c", HOST, coordinator, str(host), *arguments) for host in range(2)])
    reports = [json.loads(output.splitlines()[-2]) for output in outputs]
    assert [report["seeds"] for report in reports] == [[7, 8, 9, 10], [11, 12, 13, 14]]
    assert [report["three"] for report in reports] == [[7, 8, 9], []]
    for report in reports:
        assert (report["devices"], report["shards"]) == (8, [4])
        assert (report["steps"], report["seen"]) == (1, [[4, 8, 8, 4]])
        refused, broken = report["told"]
        assert refused == "shard_params=True: each host needs all parameters; leave it out with several"
        assert broken.startswith("the image of seed 14 (1 of 8) became NaN or infinite")
    drawn = [dict(np.load(tmp_path / f"{host}.npz")) for host in range(2)]
    images, latents, three = (np.concatenate([each[name] for each in drawn]) for name in ("images", "latents", "three"))
    pipe, params, result = one_host
    np.testing.assert_array_equal(latents, result.latents)
    np.testing.assert_array_equal(images, np.stack([np.asarray(image) for image in result.images]))
    np.testing.assert_array_equal(three, pipe.generate(params, PROMPT, num_images=3, output="numpy", **ASKED).images)
    for output in outputs:  # a benchmark counts the images of both
        assert json.loads(output.splitlines()[-1]) == {"images": pytest.approx(8), "compiled": 0}


def test_generate_on_two_hosts(small: Any, one_host: Any, tmp_path: Path) -> None:
    """Both write into one folder, as on a disk that they share."""
    folder = tmp_path / "pictures"
    asked = (PROMPT, "--model", str(small[0].checkpoint.source), "-n", "8", "--seed", "7", "--steps", "3", "--json")
    outputs = command("generate", *asked, "--output", str(folder))
    reports = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert [report["host"] for report in reports] == [0, 1]
    assert sorted(file for report in reports for file in report["images"]) == sorted(map(str, folder.iterdir()))
    *_, result = one_host
    for seed, image in zip(result.seeds, result.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"jaxl-{seed}.png")), np.asarray(image))


@pytest.mark.parametrize(("number", "told"), [(None, True), (0, True), (1, False)])
def test_the_first_host_alone_reports(
    number: int | None, told: bool, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    @contextmanager
    def joined(_: Hosts) -> Iterator[int | None]:
        yield number

    monkeypatch.setattr(Hosts, "joined", joined)
    monkeypatch.setattr(bench._Options, "measure", lambda *_: {"rows": [], "model": "tiny", "dtype": "float32"})
    monkeypatch.setattr(bench, "_write", lambda folder, _: folder.mkdir())
    assert run(["bench", "--json", "--output", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results").exists() == bool(capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("10.0.0.1:9876", 2, 2), "host=2: give 0 to 1"),
        (("10.0.0.1:9876", 2, -1), "host=-1: give 0 to 1"),
        (("10.0.0.1:9876", 0, 0), "hosts=0: give how many"),
        (("10.0.0.1", 2, 0), "coordinator='10.0.0.1': give HOST:PORT"),
        (("10.0.0.1:98765", 2, 0), "coordinator='10.0.0.1:98765': give HOST:PORT"),
        (("10.0.0.1:9876", 2, None), "host=None: coordinator, hosts and host go together"),
        ((None, 2, 0), "coordinator=None: coordinator, hosts and host go together"),
    ],
)
def test_arguments(arguments: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        hosts.join(*arguments)


def test_the_others_do_not_come() -> None:
    """Host 0 waits for the rest in vain, and host 1 of another pair for its host 0."""
    ports = [free_port(), free_port()]
    together = [("--coordinator", f"127.0.0.1:{port}", "--hosts", "2", "--timeout", "1") for port in ports]
    alone = [start("-m", "jaxl", "generate", PROMPT, *each, "--host", str(host)) for host, each in enumerate(together)]
    told = [process.communicate(timeout=600)[1].splitlines()[-1] for process in alone]
    assert [process.returncode for process in alone] == [1, 1]
    assert told[0].startswith(f"jaxl: error: not all 2 hosts came to 127.0.0.1:{ports[0]} within 1 s")
    assert told[1].startswith(f"jaxl: error: no host 0 was at 127.0.0.1:{ports[1]}")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("generate", "x", "--refiner", "tiny", "--distributed"), "--refiner 'tiny': several hosts do not do that"),
        (("bench", "--startup", "--distributed"), "--startup True: it is measured on one host"),
        (("generate", "x", "--hosts", "2"), "--coordinator None: coordinator, hosts and host go together"),
        (
            ("generate", "x", "--distributed", "--coordinator", "a:1", "--hosts", "2", "--host", "0"),
            "--distributed True: it finds the hosts by itself",
        ),
    ],
)
def test_options(argv: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    assert capsys.readouterr().err.startswith(f"jaxl: error: {problem}")


def test_alone() -> None:
    """A single process has all images, and gathers nothing."""
    mesh = jaxl.make_mesh(jax.devices()[:2])
    assert own_images(mesh, 4) == [0, 1, 2, 3]
    assert own_images(mesh, 1) == [0]
    assert gathered(3, mesh).tolist() == [3]
