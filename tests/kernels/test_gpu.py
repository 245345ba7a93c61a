"""The forms for NVIDIA's GPUs, lowered for CUDA on a machine that has none."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from jaxl.kernels import Kernels
from jaxl.kernels.attention import attention
from jaxl.presets import SDXL_BASE
from jaxl.run.bucket import Bucket
from jaxl.run.model import Model
from jaxl.run.programs import Programs
from jaxl.run.sharding import make_mesh, place_parameters

CUDNN = Kernels(attention="cudnn")
BOTH = Kernels(attention="cudnn", group_norm="triton")


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax asks for cuDNN's version when it traces."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def full_size(kernels: Kernels) -> Programs:
    mesh = make_mesh(jax.devices()[:1])
    model = replace(Model.from_configs(SDXL_BASE), kernels=kernels)
    return Programs(model, mesh, place_parameters(model.shapes(jnp.bfloat16), mesh, split=False))


def custom_calls(module: str) -> Counter[str]:
    """How often a run of a module (one pass through its loops) comes to each custom call."""
    functions = re.split(r"\n  func\.func ", module)[1:]
    body = {re.search(r"@([\w.]+)", text)[1]: text for text in functions}  # pyright: ignore[reportOptionalSubscript]

    def count(name: str) -> Counter[str]:
        found = Counter(re.findall(r"stablehlo\.custom_call @([\w$.]+)\(", body[name]))
        for callee, times in Counter(re.findall(r"\bcall @([\w.]+)\(", body[name])).items():
            found += Counter({target: times * each for target, each in count(callee).items()})
        return found

    return count("main")


def lowered(run: Any, *args: jax.ShapeDtypeStruct) -> str:
    return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("cudnn")
def test_a_full_size_step_is_lowered_with_every_kernel() -> None:
    bucket = Bucket(1, 1024, 1024, guided=True)
    module = full_size(BOTH).trace("advance", bucket).lower(lowering_platforms=("cuda",)).as_text()
    calls = custom_calls(module)
    assert calls["__cudnn$fmhaSoftmax"] == 2 * 70  # self- and cross-attention of every block
    # 28 norms of one kernel each; of the other 18, nine read two pictures
    assert calls["__gpu$xla.gpu.triton"] == 28 + 18 + 9
    # slots are given away: each leaf is written where it was
    assert module.count("tf.aliasing_output") == len(jax.tree.leaves(full_size(BOTH).trace("advance", bucket).out_info))


@pytest.mark.usefixtures("cudnn")
def test_full_size_texts_and_pictures_are_lowered() -> None:
    programs, bucket = full_size(BOTH), Bucket(1, 1024, 1024, guided=False)
    texts, decode = (
        custom_calls(programs.trace(kind, bucket).lower(lowering_platforms=("cuda",)).as_text())
        for kind in ("encode_text", "decode")
    )
    assert texts["__cudnn$fmhaSoftmax"] == sum(cfg.layers for cfg in programs.target.model.text_encoders.values())
    assert decode["__cudnn$fmhaSoftmax"] == 0  # one head of 512
    assert decode["__gpu$xla.gpu.triton"] == 30  # all norms of the decoder, each by one pass for statistics


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("dtype", "width", "keywords", "mask"),
    [
        (jnp.bfloat16, 128, {}, "NO_MASK"),
        (jnp.bfloat16, 128, {"causal": True}, "CAUSAL"),
        (jnp.bfloat16, 128, {"lengths": True}, "PADDING"),
        (jnp.float32, 128, {}, None),
        (jnp.bfloat16, 1024, {}, None),  # a head of 512, as the autoencoder's
        (jnp.bfloat16, 24, {}, None),  # heads of 12
    ],
)
def test_cudnn_takes_what_it_can(dtype: Any, width: int, keywords: dict[str, bool], mask: str | None) -> None:
    x, lengths = jax.ShapeDtypeStruct((2, 16, width), dtype), jax.ShapeDtypeStruct((2,), jnp.int32)

    def run(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        return attention(
            q, k, v, 2, causal="causal" in keywords, lengths=lengths if "lengths" in keywords else None, kernels=CUDNN
        )

    module = lowered(run, x, x, x, lengths)
    assert custom_calls(module)["__cudnn$fmhaSoftmax"] == (mask is not None)
    assert mask is None or re.search(rf"mask_type[^A-Z]+{mask}\W", module)


def test_which_gpus_use_cudnn() -> None:
    on = {capability: Kernels.of("gpu", capability).attention for capability in ("9.0", "10.3", "8.0", "7.5", "gfx942")}
    assert on == {"9.0": "cudnn", "10.3": "cudnn", "8.0": "cudnn", "7.5": "xla", "gfx942": "xla"}
