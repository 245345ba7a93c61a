"""`jaxl bench`, for real on a tiny workload, and what it refuses."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import jaxl
from jaxl.bench.peer_worker import OpenVino, read_log
from jaxl.bench.peers import Opening, Peer, check_workload, read_peer
from jaxl.bench.workload import Stages, Workload
from jaxl.cli import run
from jaxl.errors import InputError, JaxlError
from jaxl.weights.store import read_header

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(jaxl.__file__).parents[1])}
TINY = Path(jaxl.__file__).parent / "models" / "tiny"
# what stable-diffusion.cpp printed of two images, and of a model of other sizes than SDXL's
LOG = """[INFO ] stable-diffusion.cpp:3168 - get_learned_condition completed, taking 0.15s
[INFO ] stable-diffusion.cpp:3432 - sampling completed, taking 1.50s
[INFO ] stable-diffusion.cpp:3432 - sampling completed, taking 1.70s
[INFO ] stable-diffusion.cpp:3450 - generating 2 latent images completed, taking 3.20s
[INFO ] stable-diffusion.cpp:3208 - latent 1 decoded, taking 0.13s
[INFO ] stable-diffusion.cpp:3212 - decode_first_stage completed, taking 0.25s
[INFO ] stable-diffusion.cpp:3591 - generate_image completed in 3.60s
"""
WRONG = """  |>  | 2/909 - 3.13MB/s[ERROR] model.cpp:1035 - tensor 'a' has wrong shape in model file: got [4]
[ERROR] stable-diffusion.cpp:801  - load tensors from model loader failed
[INFO ] main.cpp:713  - new_sd_ctx_t failed
"""


def test_measures_a_random_model_beside_diffusers(tmp_path: Path) -> None:
    """The whole command, in a process of its own, as its peer has one of its own."""
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "jaxl", "bench", "--model", "random:tiny", "--size", "32x32", "--steps", "2"]
    options = ["--runs", "2", "--peer", "diffusers:bfloat16", "--json", "--output", "out"]
    environment = {**ENVIRONMENT, "JAXL_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 programs were compiled after the warm-up" in done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    (report,) = results["reports"]
    assert report["machine"]["platform"] == "cpu"
    assert report["versions"]["jaxl"] == jaxl.__version__
    facts = report["peers"]["diffusers:bfloat16"]
    assert facts["threads"] >= 1
    assert (report["dtype"], facts["dtype"], facts["vae_dtype"]) == ("float32", "bfloat16", "bfloat16")
    (row,) = report["rows"]
    assert (row["devices"], row["images"], row["size"], row["steps"]) == (1, 1, "32x32", 2)
    assert row["images_per_s"] == pytest.approx(1 / row["latency_s"]["median"])
    assert 0 < 2 * row["step_ms"]["median"] / 1000 < row["latency_s"]["median"]
    assert row["compilations_after_warmup"] == 0
    assert row["peak_memory_bytes"] > 2**27
    peer = row["peers"]["diffusers:bfloat16"]
    assert set(peer["peer_ratio"]) == {"step", "image"}
    assert peer["peer_ratio"]["image"]["median"] == pytest.approx(
        peer["latency_s"]["median"] / row["latency_s"]["median"]
    )
    assert row["startup"] is None
    assert (tmp_path / "out" / "latency.png").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "0"), "--batch 0: give 1 or more"),
        (("--batch", "1,x"), "--batch '1,x': give whole numbers"),
        (("--size", "64"), "--size '64': give WIDTHxHEIGHT"),
        (("--runs", "0"), "--runs 0"),
        (("--peer", "difusers"), "did you mean 'diffusers'?"),
        (("--peer", "diffusers:fp8"), "--peer 'diffusers:fp8': known: bfloat16, float16, float32"),
        (("--peer", "diffusers", "--devices", "2"), "--devices [2]: peers run on one"),
        (("--model", "random:huge"), "--model 'random:huge': known: mid, sdxl, tiny"),
        (("--prices", "none.toml"), "--prices 'none.toml': No such file"),
        (("results.json",), "No such command 'results.json'"),
        (("merge",), "Missing argument 'results'"),
    ],
)
def test_refused(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxl: error: ")
    assert err.count("\n") == 1
    assert words in err


def test_peers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SD_CPP", raising=False)
    for name, remedy in (
        ("diffusers", "pip install torch diffusers transformers"),
        ("torch-compile", "pip install torch diffusers transformers"),
        ("openvino:float32", "pip install openvino torch diffusers transformers"),
        ("flax", r"diffusers==0\.39"),
        ("stable-diffusion.cpp", "SD_CPP"),
    ):
        with pytest.raises(InputError, match=remedy):
            read_peer(name)


def test_schedulers_of_peers() -> None:
    check_workload("diffusers", "cpu", "dpm++2m")
    check_workload("flax", "tpu", "dpm++2m_karras")
    for name in ("diffusers", "stable-diffusion.cpp"):
        with pytest.raises(InputError, match=f"scheduler='dpm\\+\\+2m_karras': beside {name}"):
            check_workload(name, "cpu", "dpm++2m_karras")
    with pytest.raises(InputError, match="peer='openvino': it does not run on gpu"):
        check_workload("openvino", "gpu", "euler")


class OpenVinoStandIn(ModuleType):
    """openvino as far as the peer calls it: networks run in PyTorch."""

    __version__ = "1"

    def __init__(self) -> None:
        super().__init__("openvino")
        self.compiled: list[Any] = []
        self.precision = "bf16"

    def Core(self) -> "OpenVinoStandIn":  # noqa: N802
        return self

    def set_property(self, device: str, properties: dict[str, str]) -> None:
        (self.precision,) = properties.values()

    def get_property(self, device: str, name: str) -> SimpleNamespace:
        return SimpleNamespace(get_type_name=lambda: self.precision)

    def convert_model(self, network: Any, example_input: Any, input: Any) -> Any:
        self.compiled.append(input)
        return network

    def compile_model(self, network: Any, device: str) -> Any:
        import torch

        def run(arrays: list[Any]) -> list[Any]:
            with torch.no_grad():
                return [network(*map(torch.from_numpy, arrays)).numpy()]

        return run


def test_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws what diffusers draws, compiles for shapes once, and tells of its precision."""
    torch = pytest.importorskip("torch")
    stand_in = OpenVinoStandIn()
    monkeypatch.setitem(sys.modules, "openvino", stand_in)
    monkeypatch.setenv("CI", "true")  # which it sets itself elsewhere
    peer = OpenVino(Opening("openvino:float32", "openvino", str(TINY), "float32", "float32", "cpu"))
    assert (peer.facts["openvino"], peer.facts["dtype"], peer.facts["vae_dtype"]) == ("1", "float32", "float32")

    def draw() -> Any:
        size: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 2}
        return peer.pipe("a cat", output_type="np", generator=torch.manual_seed(0), **size).images

    image = draw()
    assert peer.run(Workload(1, 32, 32, 1, 2, "euler", 5.0)).evaluations == 2
    assert [shapes[0] for shapes in stand_in.compiled] == [(2, 4, 4, 4), (1, 4, 4, 4)]
    for network in (peer.pipe.unet, peer.pipe.vae.decoder):
        del network.forward  # the class has PyTorch's own
    assert (draw() == image).all()


def test_stable_diffusion_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that prints what the real one prints is told the same work, and its failure is one line."""
    assert read_log(LOG, 4) == Stages(3.6, 3.2, 4, 0.25)
    with pytest.raises(RuntimeError, match="tells no times"):
        read_log("done", 4)
    program = tmp_path / "sd-cli"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\n[ "$6" != "bad" ] || exit 1\ncat <<END\n{LOG}END\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SD_CPP", str(program))
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    read_peer("stable-diffusion.cpp")
    with Peer(Opening("sd", "stable-diffusion.cpp", str(TINY), "float32", "float32", "cpu")) as peer:
        assert peer.run(Workload(1, 64, 32, 2, 4, "euler", 5.0)) == Stages(3.6, 3.2, 4, 0.25)
        assert peer.run(Workload(1, 64, 32, 2, 4, "heun", 5.0)).evaluations == 7
        assert peer.peak_memory() > 0
        arguments = (tmp_path / "arguments").read_text()
        model = Path(arguments.split()[1])
        assert read_header(model)["model.diffusion_model.input_blocks.0.0.weight"].shape == (64, 4, 3, 3)
        program.write_text(f"#!/bin/sh\ncat <<END\n{WRONG}END\nexit 1\n")
        with pytest.raises(JaxlError, match=r"RuntimeError: tensor 'a' has wrong shape .* such as random:sdxl"):
            peer.run(Workload(1, 64, 32, 2, 4, "euler", 5.0))
    assert not model.exists()
    for part in ("--type f32", "-W 64 -H 32 -b 2 --steps 4 --cfg-scale 5.0 --sampling-method euler"):
        assert part in arguments


def test_peers_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, whether the process tells why or ends."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    with pytest.raises(JaxlError, match="peer other: KeyError: 'other'"):
        Peer(Opening("other", "other", "model", "float32", "float32", "cpu"))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(JaxlError, match="peer other: ended with status 1"):
        Peer(Opening("other", "other", "model", "float32", "float32", "cpu"))
