"""XLA's options for programs."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxl.run import compiler
from jaxl.run.bucket import Bucket
from jaxl.run.compiler import OTHER_PRODUCTS, YNN, compiled, compiler_options
from jaxl.run.programs import ADVANCE, Programs

FLOATS = {"weight": jnp.zeros((4, 4)), "key": jnp.zeros(2, jnp.uint32), "mask": jnp.zeros(4, bool)}


INTEL = {"vendor_id": "GenuineIntel", "flags": "fma avx2 avx512f"}
AMD = {"vendor_id": "AuthenticAMD", "flags": "fma avx2 avx512f"}
OLDER = {"vendor_id": "AuthenticAMD", "flags": "fma avx2"}


@pytest.mark.parametrize(
    ("processor", "options"), [(INTEL, OTHER_PRODUCTS), (AMD, {}), (OLDER, OTHER_PRODUCTS), ({}, {})]
)
def test_products_of_float32(processor: dict[str, str], options: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options("cpu", processor, FLOATS) == options
    assert compiler_options("tpu", processor, FLOATS) == {}
    for dtype in (jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn):
        assert compiler_options("cpu", processor, {**FLOATS, "more": jnp.zeros(1, dtype)}) == {}


def test_flags_of_the_environment_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_use_fusion_emitters=true --{YNN}=")
    assert compiler_options("cpu", INTEL, FLOATS) == {}


def test_products_are_compiled_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled for an Intel processor has no product of YNN's, and gives the same numbers."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    traced = jax.jit(lambda x, y: x @ y).trace(jnp.ones((64, 64)), jnp.ones((64, 64)))
    texts = []
    for processor in (INTEL, AMD):
        monkeypatch.setattr(compiler, "facts", lambda processor=processor: processor)
        made = compiled(traced, "cpu", products=True)
        texts.append(made.as_text())
        assert made(jnp.ones((64, 64)), jnp.ones((64, 64)))[0, 0] == 64
    assert "__ynn_fusion" not in str(texts[0])
    if "__ynn_fusion" not in str(texts[1]):
        pytest.skip("this jaxlib does not hand products to YNN")


def test_an_image_of_a_batch_does_not_depend_on_its_place(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's own products have other last bits for other places, so only an evaluation that is alone has them."""
    asked: list[bool] = []

    def not_now(*_: object, products: bool) -> None:
        asked.append(products)
        raise ValueError("not now")

    monkeypatch.setattr("jaxl.run.programs.compiled", not_now)
    pipe = small[0]
    together = replace(pipe.model, kernels=replace(pipe.model.kernels, evaluations="together"))
    for model, batch in ((pipe.model, 4), (together, 1), (together, 4)):
        with pytest.raises(ValueError, match="not now"):
            Programs(model, pipe.mesh, pipe.programs.shapes).get(ADVANCE, Bucket(batch, 64, 64, guided=True))
    assert asked == [True, True, False]


def test_a_jaxlib_that_does_not_know_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compiler_options", lambda *_: {"xla_cpu_forgotten": "1"})
    assert compiled(jax.jit(lambda: jnp.ones(())).trace(), "cpu", products=True)() == 1


def test_other_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        in_avals = ()

        def lower(self) -> "Refused":
            return self

        def compile(self, **_: object) -> None:
            raise jax.errors.JaxRuntimeError("INTERNAL: out of registers")

    with pytest.raises(jax.errors.JaxRuntimeError, match="registers"):
        compiled(Refused(), "cpu", products=True)  # pyright: ignore[reportArgumentType]
