"""`jaxl estimate`: what is read from the compiler's text, topologies, the search, and the command's refusals."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from typing import Any

import jax
import pytest

from jaxl.bench import estimate, hlo
from jaxl.bench.estimate import CHIPS, EstimateRequest, largest, read_topology
from jaxl.bench.hlo import Rates, Received, by_kind, operations, received, total
from jaxl.bench.random_model import MODELS
from jaxl.cli.app import run
from jaxl.config import UNetConfig
from jaxl.errors import InputError, JaxlError
from jaxl.extras import install_command
from jaxl.nn.controlnet import controlnet_shapes

needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")

PROGRAM = """\
HloModule jit_run, is_scheduled=true, entry_computation_layout={(bf16[8,128]{1,0:T(8,128)(2,1)})->bf16[8,128]{1,0}}

%fused_computation (param_0: bf16[8,128]) -> bf16[8,128] {
  %param_0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %add.1 = bf16[8,128]{1,0:T(8,128)(2,1)} add(%param_0, %param_0), backend_config={"estimated_cycles":"999999"}
}

%layer (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %copy.3 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy(%p), metadata={op_name="jit(run)/copy"}, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %tuple.1 = (s32[], bf16[8,128]{1,0:T(8,128)}) tuple(%i, %copy.3)
}

%step (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %fusion.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%p), kind=kOutput, calls=%fused_computation, metadata={op_name="jit(run)/while/body/dot_general" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %attention.7 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%fusion.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(run)/attention/pallas_call"}, backend_config={"custom_call_config":{"body":"TUz(","cost_estimate":{"flops":"3000","transcendentals":"0","bytes_accessed":"40","remote_bytes_transferred":"0"}}}
  %moments.2 = (f32[2,128]{1,0:T(2,128)S(1)}, f32[2,128]{1,0}) custom-call(%fusion.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"10","bytes_accessed":"500"}}}
  %mine = bf16[8,128]{1,0} custom-call(%fusion.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{}}
  %bits = bf16[8,128]{1,0} custom-call(%fusion.1), custom_call_target="ConcatBitcast", backend_config={}
  %all-gather-start.1 = (bf16[2,128], bf16[8,128]) all-gather-start(%fusion.1), metadata={op_name="jit(run)/all_gather"}
  %while.3 = (s32[], bf16[8,128]{1,0:T(8,128)}) while(%t), condition=%thrice, body=%part, metadata={op_name="jit(run)/while"}
  ROOT %while.2 = (s32[], bf16[8,128]{1,0:T(8,128)}) while(%t), condition=%cond, body=%layer, backend_config={"known_trip_count":{"n":"5"}}
}

%cond (p: (s32[], bf16[8,128])) -> pred[] {
  ROOT %compare.1 = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%thrice (p: (s32[], bf16[8,128])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(3), metadata={op_name="jit(run)" stack_frame_id=61}
  ROOT %lt.4 = pred[]{:T(512)} compare(%get-tuple-element.4, %constant.3), direction=LT, metadata={op_name="jit(run)/lt"}
}

%part (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  ROOT %fusion.9 = bf16[8,128]{1,0} fusion(%p), kind=kLoop, metadata={op_name="jit(run)/...td,...sd->...ts/dot_general"}, backend_config={"window_config":{"estimated_cycles":"11"}}
}

ENTRY %main.9 (x.1: bf16[8,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %while.1 = (s32[], bf16[8,128]{1,0:T(8,128)}) while(%t), condition=%cond, body=%step
}
"""  # noqa: E501


def test_operations_of_a_program() -> None:
    found = operations(PROGRAM, Rates(flops=10, bytes=2))
    cycles = {operation.name: operation.cycles for operation in found}
    # inside of fusions nothing counts twice; inner loops run three and five times, as the one's condition and a note at
    # the other say; kernels take the longer of both limits
    assert cycles == {
        "attention.7": 300.0,
        "moments.2": 250.0,
        "fusion.1": 100.0,
        "copy.3": 35.0,
        "fusion.9": 33.0,
        "mine": None,
        "all-gather-start.1": None,
    }
    assert [operation.name for operation in found[:2]] == ["attention.7", "moments.2"]
    assert total(found) == 718
    assert by_kind(found) == {
        "attention": 333,
        "normalisation": 250,
        "matrix product": 100,
        "copy": 35,
        "other": 0,
        "collective": 0,
    }
    product = next(operation for operation in found if operation.name == "fusion.1")
    assert product.source == "jit(run)/while/body/dot_general"
    assert product.shape == "bf16[8,128]"
    assert next(operation for operation in found if operation.name == "copy.3").times == 5


def test_what_a_device_receives() -> None:
    lines = [
        "%a = (bf16[2,128], bf16[8,128]) all-gather-start(%x), channel_id=3, replica_groups={{0,1,2,3}}",
        "%b = bf16[8,128]{1,0} all-gather(%x), channel_id=3, replica_groups={{0,1,2,3}}",  # the same, once more
        "%c = bf16[4,128]{1,0} all-to-all(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}",
        "%d = bf16[4,128]{1,0} all-to-all(%c), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}",  # another
        "%e = (f32[16], u32[]) collective-permute-start(%x), channel_id=2",
        "%f = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}",
    ]
    found = received("".join(f"  {line}\n" for line in lines))
    assert found == Received(5, 0.75 * 2048 + 2 * 0.75 * 1024 + 64 + 2 * 0.5 * 40)


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5e:2x2", "v5e:2x2", 4),
        ("v5e:1x1", "v5e:1x1", 1),
        ("v5e-1", "v5e:1x1", 1),
        ("v5e-4", "v5e:2x2", 4),
        ("v5e-8", "v5e:2x4", 8),
        ("v6e-16", "v6e:4x4", 16),
        ("v4-8", "v4:2x2x1", 4),
    ],
)
def test_topologies(text: str, name: str, chips: int) -> None:
    topology = read_topology(text)
    assert (topology.name, topology.chips) == (name, chips)


@pytest.mark.parametrize(
    "text", ["v5e", "v5e:", "v5e:0x1", "v5e:3x1", "v5e-3", "v5e-0", "v5e:2x2x1", "v4:2x2", "h100-1", "v9-4"]
)
def test_bad_topologies(text: str) -> None:
    with pytest.raises(InputError, match="topology"):
        read_topology(text)


def test_rates_are_of_a_core() -> None:
    assert CHIPS["v5e"].rates.flops == pytest.approx(4 * 128 * 128 * 2, rel=0.01)
    assert CHIPS["v6e"].rates.flops == pytest.approx(4 * 256 * 256 * 2, rel=0.01)
    assert CHIPS["v4"].rates.flops == pytest.approx(4 * 128 * 128 * 2, rel=0.01)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, 1000])
@pytest.mark.parametrize("known", [1, 4])
def test_largest(limit: int, known: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    found = largest(fits, known, known <= limit)
    assert found == min(limit, estimate.MAX_BATCH)
    assert len(tried) == len(set(tried)) <= 16


def test_times() -> None:
    seconds = {"encode_text": 0.01, "gather": 0.002, "start": 0.001, "decode": 0.1, "advance": 0.09}
    report: dict[str, Any] = {
        "programs": {kind: {"seconds": each, "fits": kind != "decode"} for kind, each in seconds.items()},
        "steps": 20,
        "batch": 4,
        "chips": 4,
    }
    found = estimate.times(report)
    assert found["call_s"] == pytest.approx(20 * 0.09 + 2 * 0.01 + 0.002 + 0.001 + 0.1)
    assert found["images_per_s_per_chip"] == pytest.approx(1 / found["call_s"])
    assert not found["fits"]
    report["programs"] |= {"embed_control": {"seconds": 0.003, "fits": True}}
    assert estimate.times(report)["call_s"] == pytest.approx(found["call_s"] + 4 * 0.003)


def test_controlnets_as_large_as_those_that_are_published() -> None:
    unet = UNetConfig.from_json(MODELS["sdxl"]()[0]["unet"])

    def billions(kind: str) -> float:
        shapes = controlnet_shapes(estimate.controlnet_config(unet, kind))
        return sum(math.prod(shape.shape) for shape in jax.tree.leaves(shapes)) / 1e9

    assert [round(billions(kind), 2) for kind in ("full", "mid", "small")] == [1.25, 0.27, 0.16]


def request(**changes: Any) -> EstimateRequest:
    usual = EstimateRequest("v5e:1x1", "tiny", None, None, None, 4, split=False, vae_dtype=None, largest_batch=False)
    return dataclasses.replace(usual, **changes)


def test_the_command_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(estimate.importlib.util, "find_spec", lambda name: None)
    assert run(["estimate"]) == 2
    said = capsys.readouterr()
    assert (
        said.err == f"jaxl: error: --topology 'v5e:2x2': this needs the compiler for TPUs: {install_command('tpu')}\n"
    )
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--topology", "v5e:3x3"], "--topology 'v5e:3x3'"),
        (["--size", "1024"], "--size '1024'"),
        (["--size", "1000x1000"], "--size '1000x1000'"),
        (["--batch", "0"], "--batch 0"),
        (["--steps", "0"], "--steps 0"),
        (["--lora-rank", "0"], "--lora-rank 0"),
        (["--controlnet", "ful"], "--controlnet 'ful': did you mean 'full'?"),
        (["--precision", "int9"], "--precision 'int9': did you mean 'int8'?"),
        (["--precision", "int8@40"], "--precision 'int8@40': the layers that stay exact are chosen with the weights"),
        (["--prices", "nowhere.toml"], "--prices 'nowhere.toml'"),
    ],
)
def test_the_command_refuses(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"jaxl: error: {word}")
    assert said.count("\n") == 1


class Child:
    """A process that says what it is told to, in place of the compiler's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
        monkeypatch.setattr(estimate.importlib.util, "find_spec", lambda name: object())
        popen = subprocess.Popen
        monkeypatch.setattr(
            estimate.subprocess,
            "Popen",
            lambda command, **options: self.keep(popen([sys.executable, "-c", program], **options)),
        )

    def keep(self, process: Any) -> Any:
        self.process = process
        return process


def test_a_report_comes_back_and_the_child_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"compiling": "advance"}), json.dumps({"report": {"fits": True}})]
    child = Child(monkeypatch, f"import time\nprint({lines[0]!r}); print({lines[1]!r}, flush=True); time.sleep(60)")
    told: list[str] = []
    assert estimate.estimate(request(), told.append) == {"fits": True}
    assert told == ["advance"]
    assert child.process.poll() is not None


def test_loras_and_a_controlnet_are_told_beside_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"own": 2**30, "temporaries": 0, "total": 2**30, "fits": True, "cycles": 1e6, "compile_s": 1.0}
    facts |= {"kinds": {"copy": 1e6}, "unknown": 0, "top": []}
    facts |= {"received": {"transfers": 0, "bytes": 0.0}, "link_seconds": 0.0}
    times = ("step_s", "call_s", "image_s", "images_per_s", "images_per_s_per_chip")
    report: dict[str, Any] = {
        **{"chip": "TPU v5e", "chips": 4, "topology": "v5e:2x2", "model": "tiny", "batch": 4, "steps": 20},
        **{"size": "64x64", "dtype": "bfloat16", "vae_dtype": "bfloat16", "memory_bytes": 2**34},
        **dict.fromkeys(times, 0.1),
        "programs": {
            "advance": {**facts, "seconds": 0.104, "total": 1.25 * 2**30},
            "decode": {**facts, "seconds": 1.0},
        },
        "without_loras": {**facts, "seconds": 0.1},
        "without_controlnet": {**facts, "seconds": 0.08, "total": 0.75 * 2**30},
        "without_image_prompts": {**facts, "seconds": 0.1},
    }
    # the rank and the kind are those that were asked for, as the process hears of them
    answer = "json.dumps({'report': {**json.loads(input()), **report}})"
    Child(monkeypatch, f"import json; true = True; report = {json.dumps(report)}; print({answer})")
    assert run(["estimate", "--lora-rank", "16", "--controlnet", "mid", "--image-prompts", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("with ")]
    assert lines == [
        f"with {what}, a step takes {more} without, and {memory} GiB more on a device"
        for what, more, memory in (
            ("room for LoRAs of rank 16", "4.0% more than the 100.0 ms", "0.25"),
            ("a ControlNet (mid)", "30.0% more than the 80.0 ms", "0.50"),
            ("image prompts (2)", "4.0% more than the 100.0 ms", "0.25"),
        )
    ]


def test_the_compilers_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Child(monkeypatch, "raise ValueError('out of\\nregisters')")
    with pytest.raises(JaxlError, match="failed: registers"):
        estimate.estimate(request(), lambda kind: None)


def test_what_the_child_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"refused": {"argument": "batch", "value": 3, "remedy": "give a multiple of 4"}})
    Child(monkeypatch, f"print({line!r})")
    with pytest.raises(InputError, match=r"^batch=3: give a multiple of 4$"):
        estimate.estimate(request(), lambda kind: None)


@needs_compiler
def test_compiles_for_a_chip_that_is_not_there() -> None:
    program = """
import jax, jax.numpy as jnp
from jaxl.bench.estimate import CHIPS, _devices, read_topology
from jaxl.bench.hlo import operations, total
device = _devices(read_topology("v5e:1x1"))[0]
x = jax.ShapeDtypeStruct((2048, 1280), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
y = jax.ShapeDtypeStruct((1280, 1280), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
text = jax.jit(jnp.matmul).lower(x, y).compile().as_text()
print(total(operations(text, CHIPS["v5e"].rates)))
"""
    environment = {**estimate.os.environ, **estimate.ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    floor = 2 * 2048 * 1280 * 1280 / CHIPS["v5e"].rates.flops
    assert floor < float(done.stdout) < 1.3 * floor


def test_kinds_have_names() -> None:
    assert hlo._kind("fusion", "jit(f)/...ts,...sd->...td/dot_general") == "attention"
    assert hlo._kind("fusion", "jit(f)/conv_general_dilated") == "convolution"
    assert hlo._kind("fusion", "jit(f)/reduce_sum") == "normalisation"
    assert hlo._kind("add", "jit(f)/add") == "other"
